"""Tables of a user's own: rows read with their place in the file, and rows with answers written as they come.

Formats: JSON lines, a JSON array, CSV, TSV, plain text (a query a line), Parquet. However many rows there are, only a
few are in memory at a time.
"""

from hart.data.tables.formats import FORMATS, MAX_ROW_BYTES, RowError, format_of
from hart.data.tables.reading import Row, Table, chunks
from hart.data.tables.writing import Answers

__all__ = ["FORMATS", "MAX_ROW_BYTES", "Answers", "Row", "RowError", "Table", "chunks", "format_of"]
