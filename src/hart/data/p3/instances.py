"""The instances of one P3 subset, from the rows of its JSON lines or parquet files; large splits stay on disk.

A row has `inputs_pretokenized`, `targets_pretokenized` and, if its template has choices, `answer_choices`; other
columns (such as P3's token ids) are not read. Rows are numbered from 0 within their split.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self, overload

from hart.data.prompts import Cuts
from hart.data.reading import check_file, check_text, read_lines
from hart.data.tasks import Instance, check_choices
from hart.errors import HartError, first_line
from hart.runtime.files import parse_json

INPUT, TARGET, CHOICES = "inputs_pretokenized", "targets_pretokenized", "answer_choices"
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")

#: A split whose files are larger in total stays on disk.
IN_MEMORY_BYTES = 8 * 2**20


def split_files(subset: Path, split: str) -> list[Path]:
    """The files of a split, in order: `split.*`, `split-*.*`, or those of a folder `split` or `partial-split`."""
    found = [
        path
        for pattern in (f"{split}.*", f"{split}-*", f"{split}/*", f"partial-{split}/*")
        for path in subset.glob(pattern)
        if path.name.endswith(SUFFIXES)
    ]
    return sorted(found)


def read_instances(
    subset: Path, split: str, *, check_answers: bool = False, cuts: Cuts | None = None
) -> Sequence[Instance]:
    """The instances of a split: a tuple, or a sequence that reads each from disk on access.

    Args:
        subset: folder of the subset.
        check_answers: refuse rows with a blank input, or without at least two choices that include the target (for
            evaluation). In training, choices are not used and rows with a blank input are left out.
        cuts: records that rows were left out.

    Raises:
        HartError: there is no such split or no rows, a file is damaged, a row lacks a text, only some rows have
            choices, or an answer is not among its choices. The message names subset and row.
    """
    files = split_files(subset, split)
    if not files:
        raise HartError(f"{subset}: has no {split} rows; expected {split}.jsonl, {split}.parquet or {split}-*.parquet")
    for path in files:
        check_file(path)
    instances: Sequence[Instance]
    if sum(path.stat().st_size for path in files) <= IN_MEMORY_BYTES:
        instances = tuple(_instances(subset, split, files))
        blank = [at for at, instance in enumerate(instances) if not instance.input.strip()]
    else:
        instances = InstancesOnDisk(subset, split, files)
        blank = instances.blank
    if not instances:
        raise HartError(f"{subset}: {split} has no rows; remove the subset or download it again")
    if blank and (check_answers or len(blank) == len(instances)):
        raise HartError(f"{_where(subset, split, blank[0])}: {INPUT} is empty; fill or remove the row")
    if blank:
        if cuts is not None:
            kind = "left out rows with an empty input"
            left = f"left out {len(blank)} of {len(instances)} rows, whose input is empty"
            cuts.note(kind, f"subset {subset.name}", left)
        left_out = set(blank)
        kept = [at for at in range(len(instances)) if at not in left_out]
        if isinstance(instances, InstancesOnDisk):
            instances = instances.select(kept)
        else:
            instances = tuple(instances[at] for at in kept)
    if check_answers:
        for at, instance in enumerate(instances):
            check_choices(instance.choices, instance.references, _where(subset, split, at))
    return instances


def _where(subset: Path, split: str, row: int) -> str:
    return f"{subset}: {split}, row {row}"


def _instance(row: Any, where: str) -> Instance:
    if not isinstance(row, dict):
        raise HartError(f"{where}: must be a JSON object")
    for key in (INPUT, TARGET):
        if not isinstance(row.get(key), str):
            raise HartError(f"{where}: {key} is missing or no text; is this a P3 subset with the columns of the hub?")
    choices = row.get(CHOICES)
    if choices is None:
        choices = []
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise HartError(f"{where}: {CHOICES} must be a list of texts")
    for key, texts in ((INPUT, [row[INPUT]]), (TARGET, [row[TARGET]]), (CHOICES, choices)):
        for text in texts:
            check_text(text, f"{where}: {key}")
    # As in T0, answers are compared without the white space that templates put around them.
    return Instance(row[INPUT], (row[TARGET].strip(),), choices=tuple(choice.strip() for choice in choices))


def _instances(subset: Path, split: str, files: Sequence[Path]) -> Iterator[Instance]:
    """The checked instances, row by row."""
    first: Instance | None = None
    for at, row in enumerate(_read(subset, split, files)):
        instance = _instance(row, _where(subset, split, at))
        first = first or instance
        if bool(instance.choices) != bool(first.choices):
            raise HartError(f"{_where(subset, split, at)}: mixed schemas, {CHOICES} must be in all rows or in none")
        yield instance


def _read(subset: Path, split: str, files: Sequence[Path]) -> Iterator[Any]:
    number = 0
    for path in files:
        for row in _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path, subset, split, number):
            yield row
            number += 1


def _read_lines(path: Path, subset: Path, split: str, number: int) -> Iterator[Any]:
    for row, line in enumerate(read_lines(path), start=number):
        yield parse_json(line.text, f"{_where(subset, split, row)} in {path.name}", "a row", whole=False)


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        present = pyarrow.parquet.read_schema(path).names
        columns = [name for name in (INPUT, TARGET, CHOICES) if name in present]
        return pyarrow.parquet.read_table(path, columns=columns).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> HartError:
    reason = first_line(error)
    return HartError(f"{path}: is damaged or has another format ({reason}); download it again")


class InstancesOnDisk(Sequence[Instance]):
    """Instances in a memory-mapped Arrow file; only recently used ones are in memory.

    The file is written once, by `datasets` into its cache (HF_DATASETS_CACHE), and needs as much space as the text.
    `blank` are the rows with an empty input.

    Raises:
        HartError: as in `read_instances`.
    """

    def __init__(self, subset: Path, split: str, files: Sequence[Path]) -> None:
        import datasets
        import pyarrow
        import pyarrow.dataset

        failures = (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, EOFError, ValueError)
        self._subset, self._split = subset, split
        names = [str(path) for path in files]
        try:
            if files[0].suffix == ".parquet":
                # The default reads several whole row groups at once.
                scan = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
                self._rows = datasets.Dataset.from_parquet(
                    names, columns=_parquet_columns(files), batch_size=1000, fragment_scan_options=scan
                )
                self.blank = self._check()
            else:
                try:
                    self._rows = datasets.Dataset.from_json(names)
                    self.blank = self._check()
                except (HartError, *failures):
                    # Row by row is much slower, but finds the number of the wrong row, or none.
                    text = datasets.Value("string")
                    self._rows = datasets.Dataset.from_generator(
                        _as_columns,
                        features=datasets.Features({INPUT: text, TARGET: text, CHOICES: datasets.List(text)}),
                        # Times and sizes of the files are part of the rows' name in the cache.
                        gen_kwargs={"source": (str(subset), split, tuple(names), _versions(files))},
                    )
                    self.blank = self._check()
        except failures as error:
            if isinstance(error.__cause__, HartError):
                raise error.__cause__ from None
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise _damaged(subset / split, cause) from error

    def _check(self) -> list[int]:
        """The rows with an empty input. All rows are checked, in batches, so that no bad row stops a run later."""
        import pyarrow
        import pyarrow.compute as compute

        for key in (INPUT, TARGET):
            if key not in self._rows.column_names:
                raise HartError(f"{_where(self._subset, self._split, 0)}: {key} is missing; is this a P3 subset?")
        self._rows = self._rows.select_columns([c for c in (INPUT, TARGET, CHOICES) if c in self._rows.column_names])

        def refuse(bad: Any, first: int, message: str) -> None:
            if (at := compute.index(bad, True).as_py()) >= 0:
                raise HartError(f"{_where(self._subset, self._split, first + at)}: {message}")

        def check_column(column: Any, first: int, key: str, message: str) -> None:
            if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
                raise HartError(f"{_where(self._subset, self._split, first)}: {key} {message}")
            try:
                column.validate(full=True)
            except pyarrow.ArrowInvalid as error:
                where = _where(self._subset, self._split, first)
                raise HartError(f"{where} or after: {key} is not UTF-8 ({error})") from None

        first, blank, with_choices = 0, [], None
        for file in self._rows.cache_files:
            # Without the memory map, whose pages would all count as this process's memory.
            with pyarrow.OSFile(file["filename"]) as source, pyarrow.ipc.open_stream(source) as batches:
                for batch in batches:
                    for key in (INPUT, TARGET):
                        check_column(batch[key], first, key, "is missing or no text")
                        refuse(compute.is_null(batch[key]), first, f"{key} is missing or no text")
                    if CHOICES in batch.schema.names and not pyarrow.types.is_null(batch[CHOICES].type):
                        choices = batch[CHOICES]
                        if not (pyarrow.types.is_list(choices.type) or pyarrow.types.is_large_list(choices.type)):
                            refuse(compute.is_valid(choices), first, f"{CHOICES} must be a list of texts")
                        given = compute.greater(compute.fill_null(compute.list_value_length(choices), 0), 0)
                        texts = choices.flatten()
                        if len(texts):
                            check_column(texts, first, CHOICES, "must be a list of texts")
                        if texts.null_count:
                            where = _where(self._subset, self._split, first)
                            raise HartError(f"{where} or after: {CHOICES} must be a list of texts")
                        with_choices = given[0].as_py() if with_choices is None else with_choices
                        refuse(
                            compute.not_equal(given, with_choices),
                            first,
                            f"mixed schemas, {CHOICES} must be in all rows or in none",
                        )
                    empty = compute.equal(compute.utf8_length(compute.utf8_trim_whitespace(batch[INPUT])), 0)
                    blank += [first + at for at in compute.indices_nonzero(empty).to_pylist()]
                    first += len(batch)
        return blank

    def select(self, kept: Sequence[int]) -> Self:
        """The instances with these indices only."""
        selected = copy(self)
        selected._rows, selected.blank = self._rows.select(kept), []
        return selected

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Instance: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Instance, ...]: ...
    def __getitem__(self, at: int | slice) -> Instance | tuple[Instance, ...]:
        if isinstance(at, slice):
            return tuple(self[i] for i in range(*at.indices(len(self))))
        at = range(len(self))[at]
        return _instance(self._rows[int(at)], _where(self._subset, self._split, at))


def _as_columns(source: tuple[str, str, tuple[str, ...], Any]) -> Iterator[dict[str, Any]]:
    subset, split, files, _ = source
    for each in _instances(Path(subset), split, [Path(name) for name in files]):
        yield {INPUT: each.input, TARGET: each.references[0], CHOICES: list(each.choices)}


def _versions(files: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    return tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def _parquet_columns(files: Sequence[Path]) -> list[str]:
    import pyarrow.parquet

    schemas = [pyarrow.parquet.read_schema(path).names for path in files]
    for path, names in zip(files, schemas, strict=True):
        if (CHOICES in names) != (CHOICES in schemas[0]):
            raise HartError(f"{path}: mixed schemas, {CHOICES} must be in all files of the split or in none")
    return [name for name in (INPUT, TARGET, CHOICES) if name in schemas[0]] or schemas[0]
