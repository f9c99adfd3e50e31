"""A user's queries from a table: each row is checked, matched with its adaptation and choices, and tokenised.

The rows are read several times instead of being kept in memory: to find errors before a base is loaded, with its
tokenizer, and to be answered.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hart.data.prompts import Cuts
from hart.data.tables import Row, RowError, Table
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.answering import limit
from hart.model.classifying import check_classes, check_tokens
from hart.model.familiarity import note_unfamiliar
from hart.model.main_model import MainModel
from hart.runtime.files import parse_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Query:
    """One query: its row, its text, the index of its adaptation entry, and its choices."""

    row: Row
    text: str
    entry: int
    choices: Sequence[str]


class Queries:
    """The queries of a command, checked whenever they are read.

    Args:
        source: a table, or the text of a single query.
        folders: folders of the adaptations; if there are several, each row names one of them.
        field: name of the field with the query (`Table.queries`).
        choices: checked choices for the queries without their own.
        choices_field: name of the field with a row's own choices, a list or a text with commas.
        skip_errors: log a warning for a wrong row and skip it, instead of raising an error.

    Attributes:
        name: name of the source, for messages.
        again: whether the source can be read more than once.
        choices: choices for the queries without their own; may be empty.
        choosing: whether queries are answered with one of their choices.
        skipped: number of skipped rows.
        columns: the fields of all rows, in the order of their first appearance; None before `check`.
    """

    def __init__(
        self,
        source: Table | str,
        *,
        folders: Sequence[str],
        field: str | None = None,
        choices: Sequence[str] = (),
        choices_field: str | None = None,
        skip_errors: bool = False,
    ) -> None:
        self._source = source
        self._folders = folders
        self._field = field
        self._choices_field = choices_field
        self._skip_errors = skip_errors
        self.name = "--input" if isinstance(source, str) else source.name
        self.again = isinstance(source, str) or source.again
        self.choices = choices
        self.choosing = bool(choices) or choices_field is not None
        self.skipped = 0
        self.columns: dict[str, None] | None = None

    @property
    def but_skipped(self) -> str:
        """The end of an error message about missing queries: the number of skipped rows."""
        return f", only {self.skipped} wrong rows" if self.skipped else ""

    def check(self) -> int:
        """Read and check all rows; returns the number of queries.

        Raises:
            HartError: there are no queries, or a row is wrong and `skip_errors` is False.
        """
        total = 0
        self.columns = {}
        for query, _ in self.read(None, tell={"row"}):
            total += 1
            self.columns.update(dict.fromkeys(query.row.content))
        if not total:
            raise HartError(f"{self.name}: has no queries{self.but_skipped}")
        return total

    def read(self, encode: "Encoder | None", *, tell: Collection[str]) -> Iterator[tuple[Query, list[int]]]:
        """Each query with its tokens, which are empty without an encoder.

        Args:
            tell: which skipped rows to report and count: those with an error in the row itself (`row`), and those with
                an error in tokenisation (`tokens`).

        Raises:
            HartError: a row is wrong and `skip_errors` is False, or the table cannot be read further.
        """
        for item in self._rows():
            stage = "row"
            try:
                if isinstance(item, RowError):
                    raise item
                query = self._query(*item)
                stage = "tokens"
                tokens = [] if encode is None else encode(query, self.choices)
            except RowError as error:
                if not self._skip_errors:
                    raise
                if stage in tell:
                    self.skipped += 1
                    logger.warning("%s; skipped", error)
                continue
            yield query, tokens

    def _rows(self) -> Iterator[tuple[Row, str] | RowError]:
        if isinstance(self._source, str):
            yield Row(self.name, {"input": self._source}), self._source
        else:
            yield from self._source.queries(self._field)

    def _query(self, row: Row, text: str) -> Query:
        if not text.strip():
            raise _empty(row.where)
        choices: Sequence[str] = self.choices
        field = self._choices_field
        try:
            entry = _entry(row, self._folders)
            if field is not None and (row.content.get(field) or not choices):
                where = f"{row.where}: {field}"
                choices = check_classes(split_choices(row.content.get(field), where), where)
        except HartError as error:
            raise RowError(str(error)) from None
        return Query(row, text, entry, choices)


class Encoder:
    """Tokenisation of queries for the main model; `cuts` records those that were cut."""

    def __init__(self, main: MainModel, adaptation: Adaptation, max_query_length: int | None) -> None:
        form = adaptation.input_format
        self._form = replace(form, max_query_length=limit("max_query_length", max_query_length, form.max_query_length))
        self._tasks = adaptation.read_tasks()
        self._model = adaptation.model
        self._main = main
        self.cuts = Cuts()

    def __call__(self, query: Query, checked: Sequence[str]) -> list[int]:
        """Tokens of one query.

        Args:
            checked: choices that are known to have different tokens.

        Raises:
            RowError: the query has no tokens, or two of its choices have the same tokens.
        """
        form, tokenizer, where = self._form, self._main.tokenizer, query.row.where
        noted = None if form.in_context else self.cuts
        tokens = form.encode_query(tokenizer, query.text, noted, name=where, blank=True)
        if not set(tokens) - {tokenizer.eos_token_id}:
            raise _empty(where)
        note_unfamiliar(self._model, tokens, self.cuts, where)
        if query.choices is not checked:
            self.check_choices(query.choices, where)
        return (
            form.encode_in_context(tokenizer, self._tasks[query.entry], query.text, self.cuts)
            if form.in_context
            else tokens
        )

    def check_choices(self, choices: Sequence[str], where: str) -> None:
        """Raise `RowError` if two choices have the same tokens."""
        try:
            check_tokens(self._main.tokenizer, choices, self._form.max_target_length, where)
        except HartError as error:
            raise RowError(str(error)) from None


def split_choices(value: Any, where: str) -> list[str]:
    """The choices in a row's field: a list, a list as JSON text, or a text with commas."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value, where, "a list of choices")
    if isinstance(value, str):
        return value.split(",")
    if not isinstance(value, list):
        raise HartError(f"{where} must be a list of texts, or a text with commas")
    return value


def _empty(where: str) -> RowError:
    return RowError(f"{where}: the query is empty; give it a text")


def _entry(row: Row, folders: Sequence[str]) -> int:
    """The index of the adaptation folder that a row names."""
    name = row.content.get("adaptation")
    if name is None and len(folders) == 1:
        return 0
    if row.where == "--input":
        raise HartError('several adaptations need an --input-file with a field "adaptation" in each row')
    if name is None:
        raise HartError(f'{row.where}: field "adaptation" is missing; set it to one of {", ".join(folders)}')
    found = [i for i, folder in enumerate(folders) if folder == name]
    found = found or [i for i, folder in enumerate(folders) if Path(folder).name == name]
    if len(found) != 1:
        problem = "names none" if not found else "names more than one"
        raise HartError(f'{row.where}: "adaptation" {name!r} {problem} of {", ".join(folders)}')
    return found[0]
