"""Distractors: queries unrelated to a task, which an adapted model should answer as its base does.

Adaptation degrades other abilities of the base (interference: Doc-to-LoRA, Table 8). To prevent this, a share of the
training queries are distractors with the un-adapted base's answer as target (ours).
"""

from collections.abc import Sequence
from pathlib import Path

from hart.data.reading import check_file, read_lines
from hart.data.sampling import Example, Examples
from hart.data.streams import numbered_stream
from hart.errors import HartError
from hart.runtime.files import parse_json

HELD_OUT = 10
"""Every tenth distractor is held out from training, for the robustness evaluation."""

ENDINGS = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")


class WithDistractors(Examples):
    """Training examples, in a share of which a distractor replaces query and target.

    The hypernetwork's input is unchanged; a teacher reads only the distractor, so it must be the base. Example i is a
    pure function of (seed, i), as in the wrapped examples.

    Args:
        examples: examples of tasks.
        pool: tokens of each distractor and of its target.
        share: share of the examples, from 0 to 1.
        seed: seed of the draws.
    """

    def __init__(
        self, examples: Examples, pool: Sequence[tuple[list[int], list[int]]], *, share: float, seed: int
    ) -> None:
        if not pool:
            raise HartError("there are no distractors")
        self.tasks = examples.tasks
        self._examples, self._pool, self._share, self._seed = examples, pool, share, seed

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[index]
        # With its own counter, which no stream of the examples has.
        stream = numbered_stream(self._seed, index, (0, 0, 1, 0))
        if stream.random() >= self._share:
            return example
        query, target = self._pool[int(stream.integers(len(self._pool)))]
        replaced = example.copy()
        replaced["query_ids"], replaced["labels"] = query, target
        if "teacher_ids" in replaced:
            replaced["teacher_ids"] = query
        return replaced


def read_distractors(path: str | Path) -> tuple[list[str], list[str]]:
    """The distinct distractors of a file: those for training, and every `HELD_OUT`-th one, for evaluation.

    Args:
        path: a text with one query per line, or JSON lines with `input`; either may be gzipped.

    Raises:
        HartError: the file has another ending, cannot be read, has a row without a query, or fewer rows than
            `HELD_OUT`.
    """
    path = Path(path)
    check_file(path)
    if not path.name.endswith(ENDINGS):
        raise HartError(
            f'{path}: distractors must be a text with one query per line (.txt), or JSON lines with "input" (.jsonl)'
        )
    as_json = ".jsonl" in path.suffixes
    rows = [_query(line.text, f"{path}, line {line.number}") if as_json else line.text for line in read_lines(path)]
    rows = list(dict.fromkeys(row.strip() for row in rows))
    if len(rows) < HELD_OUT:
        raise HartError(f"{path}: holds {len(rows)} different distractors; at least {HELD_OUT} are needed")
    return [row for at, row in enumerate(rows, 1) if at % HELD_OUT], rows[HELD_OUT - 1 :: HELD_OUT]


def _query(text: str, where: str) -> str:
    row = parse_json(text, where, "a distractor")
    query = row.get("input") if isinstance(row, dict) else None
    if not isinstance(query, str) or not query.strip():
        raise HartError(f'{where}: must be a JSON object with a text as "input"')
    return query
