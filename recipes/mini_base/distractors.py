"""Distractors that `mini-base` can answer: prompts in the wordings of its pre-training, for data.distractors.

    python recipes/mini_base/distractors.py recipes/mini_base/distractors.txt

Every tenth prompt is of a combination that is neither in the base's pre-training nor in a training task; these prompts
are never trained on.
"""

import sys
from pathlib import Path

import numpy as np
from wordings import JOINERS, WORDINGS, prompt

from hart.data.distractors import HELD_OUT
from hart.data.procedural import Combination, combinations

EACH = 2
"""Prompts per training combination, in random wordings."""


def asked(combination: Combination, number: int, rng: np.random.Generator) -> str:
    """A prompt in random wordings, for an input that is in no task."""
    text = combination.draw(1, salt=f"distractor {number}")[0]
    parts = (combination.selector.key, combination.finisher.key)
    select, finish = (int(rng.integers(len(WORDINGS[key]))) for key in parts)
    return prompt(combination, text, select, finish, int(rng.integers(len(JOINERS))))


def main() -> None:
    rng = np.random.default_rng(0)
    trained = [each for number in range(EACH) for each in combinations("train")]
    unseen = [*combinations("validation"), *combinations("test")]
    rows: list[str] = []
    for number, place in enumerate(rng.permutation(len(trained))):
        rows.append(asked(trained[place], number, rng))
        if len(rows) % HELD_OUT == HELD_OUT - 1:
            rows.append(asked(unseen[len(rows) // HELD_OUT % len(unseen)], number, rng))
    Path(sys.argv[1]).write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
