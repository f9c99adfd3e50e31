"""The targets of distractors: the answers of the un-adapted base (`hart.data.distractors`).

They are generated once, before the first step, and kept in the run's folder, so that a resumed run has the same ones on
any machine. They are a teacher's greedy answers (sequence-level distillation, Kim and Rush 2016), so that steps cost
the same as without distractors.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from hart.data.config import DataConfig
from hart.data.distractors import read_distractors
from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.errors import HartError
from hart.model.main_model import MainModel
from hart.runtime.files import read_json, write_text

logger = logging.getLogger(__name__)

FILE = "distractors.json"


def base_answers(main: MainModel, data: DataConfig, folder: Path, device: torch.device) -> dict[str, str]:
    """Distractor → the base's greedy answer, read from the run's folder, or generated and written there.

    Args:
        main: the untrained and unsharded main model.
        data: the `data` section with `distractors`.
        folder: the run's folder.
        device: device of the generation; afterwards `main` is moved back.

    Raises:
        HartError: the file of distractors cannot be used, or differs from that at the start of the run, or the answers
            cannot be written.
    """
    queries, _ = read_distractors(data.distractors or "")
    path = folder / FILE
    if path.exists():
        return _known(folder, queries)
    logger.info("the base answers %d distractors", len(queries))
    form = InputFormat.from_config(data)
    tokens = [form.encode_query(main.tokenizer, query) for query in queries]
    before = main.device
    main.to(device)
    texts = main.generate(tokens, max_new_tokens=data.max_target_length)
    main.to(before)
    answers = dict(zip(queries, texts, strict=True))
    write_text(path, json.dumps(answers, ensure_ascii=False, indent=0) + "\n")
    return answers


def check_begun_with(data: DataConfig, folder: Path) -> None:
    """Check that a complete run was trained with the configured distractors, if their file exists.

    Raises:
        HartError: it was trained with other distractors.
    """
    if Path(data.distractors or "").is_file() and (folder / FILE).is_file():
        _known(folder, read_distractors(data.distractors or "")[0])


def _known(folder: Path, queries: list[str]) -> dict[str, str]:
    known: dict[str, str] = read_json(folder / FILE, "the base's answers to distractors")
    if list(known) != queries:
        raise HartError(
            f"{folder}: the file of data.distractors has changed since the run began; restore it, or start anew in "
            "another training.output_dir"
        )
    return known


def encoded(main: MainModel, data: DataConfig, answers: Mapping[str, str]) -> list[tuple[list[int], list[int]]]:
    """Tokens of each distractor and of its answer, in the format of queries and targets."""
    form, cuts = InputFormat.from_config(data), Cuts()
    pairs = [
        (
            form.encode_query(main.tokenizer, query, cuts, name=f"distractor {number}"),
            form.encode_target(main.tokenizer, answer),
        )
        for number, (query, answer) in enumerate(answers.items(), start=1)
    ]
    cuts.tell(logger)
    return pairs
