"""Users' tables: reading of rows with their place in the file, and incremental writing of rows with answers.

Formats: JSON lines, a JSON array, CSV, TSV, plain text (one query per line), Parquet. Only a few rows are in memory at
a time.
"""

from hart.data.tables.formats import FORMATS, MAX_ROW_BYTES, RowError, format_of
from hart.data.tables.reading import Row, Table, chunks
from hart.data.tables.writing import Answers

__all__ = ["FORMATS", "MAX_ROW_BYTES", "Answers", "Row", "RowError", "Table", "chunks", "format_of"]
