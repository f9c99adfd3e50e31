"""The targets of distractors: what the un-adapted base answers them (`hart.data.distractors`).

They are generated once, before the first step, and kept in the folder of the run, so that a run that goes on has the
same ones on whatever machine. As targets they are a teacher's greedy answers (sequence-level distillation, Kim and Rush
2016), so that steps cost what they cost without.
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
    """Distractor → the base's greedy answer, from the folder of the run or generated and written there.

    Args:
        main: before it is trained, whole.
        data: with `distractors`.
        folder: of the run.
        device: on which the base answers; it goes back to where it was.

    Raises:
        HartError: the file of distractors cannot be used, or is another than the run began with; a full disk.
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
    """See to it that a run that is complete was trained with the distractors that are asked for, if these are there.

    Raises:
        HartError: it was begun with others.
    """
    if Path(data.distractors or "").is_file() and (folder / FILE).is_file():
        _known(folder, read_distractors(data.distractors or "")[0])


def _known(folder: Path, queries: list[str]) -> dict[str, str]:
    known: dict[str, str] = read_json(folder / FILE, "the base's answers to distractors")
    if list(known) != queries:
        raise HartError(
            f"{folder}: the run was begun with other distractors than data.distractors holds now; restore the "
            "file, or start anew in another training.output_dir"
        )
    return known


def encoded(main: MainModel, data: DataConfig, answers: Mapping[str, str]) -> list[tuple[list[int], list[int]]]:
    """Tokens of each distractor and of its answer, as queries and targets of tasks have them."""
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
