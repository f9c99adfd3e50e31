"""Scores of choices, against one stock forward pass per choice, for every system and batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.answering import encode_queries
from hart.model.hart_model import HartModel
from hart.model.scoring import score_choices
from hart.training.config import DataConfig, ModelConfig, RunConfig

TASKS = [
    Task("Write the words in reverse order.", [("one two", "two one"), ("the cat", "cat the")], name="reverse"),
    Task("Write the first word.", [("cat sat on the mat", "cat")], name="first"),
    Task("Count.", [("a b c", "3"), ("a", "1")], name="count"),
]
QUERIES = ["the mat", "one two three one two three", "in order"]
CHOICES = [["mat the", "the", "the mat on the mat", "the"], ["one"], ["order", "in in order in order"]]
MIXED = [{"kind": "prefix", "length": 3}, {"kind": "lora", "rank": 2}, {"kind": "adapter", "bottleneck": 2}]
SYSTEMS = {
    "generated, fused": {"peft": MIXED},
    "generated": {"peft": MIXED, "fusion": False},
    "learned": {"peft": MIXED, "fusion": False, "weights": "learned"},
    "none": {"peft": [], "fusion": False, "weights": "none", "train_main": True},
}


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest, tiny_base_dir: Path) -> HartModel:
    model = ModelConfig(base=str(tiny_base_dir), decoder_layers=1, **SYSTEMS[request.param])
    to = "hypernetwork" if model.weights == "generated" else "main"
    data = DataConfig(max_demonstrations_length=128, max_query_length=32, max_target_length=16, demonstrations_to=to)
    made = HartModel.from_config(model, data).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not name.startswith("main."):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def one_by_one(system: HartModel, adaptation: Adaptation) -> list[list[float]]:
    """A forward of the main model for every choice alone."""
    main, scores = system.main, []
    for i, (query, own) in enumerate(zip(QUERIES, CHOICES, strict=True)):
        row = adaptation[i]
        ids, mask = main.pad(encode_queries(main.tokenizer, [query], row, system.input_format))
        scores.append([])
        for choice in own:
            labels = torch.tensor([main.tokenizer(choice).input_ids])
            assert labels[0, -1] == main.tokenizer.eos_token_id
            logits = main(
                ids, mask, labels, blocks=row.blocks, peft=row.kinds, memory=row.memory, memory_mask=row.memory_mask
            ).logits
            scores[-1].append(-F.cross_entropy(logits[0], labels[0], reduction="sum").item())
    return scores


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_equals_one_forward_per_choice(system: HartModel, batch_size: int):
    adaptation = system.adapt(TASKS)
    found = score_choices(system.main, QUERIES, CHOICES, adaptation, batch_size=batch_size)
    expected = one_by_one(system, adaptation)
    assert [len(own) for own in found] == [4, 1, 2]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert found[0][1] == pytest.approx(found[0][3], rel=1e-5), "equal choices score the same"
    assert system.score(QUERIES[2], CHOICES[2], adaptation[2]) == pytest.approx(expected[2], rel=1e-4)


def test_one_adaptation_may_serve_all_queries(system: HartModel):
    adaptation = system.adapt(TASKS[0])
    together = score_choices(system.main, QUERIES, CHOICES, adaptation)
    for query, own, found in zip(QUERIES, CHOICES, together, strict=True):
        assert found == pytest.approx(system.score(query, own, adaptation), rel=1e-4)


def test_mean_per_token(system: HartModel):
    adaptation = system.adapt(TASKS)
    sums, means = (score_choices(system.main, QUERIES, CHOICES, adaptation, normalisation=n) for n in ("sum", "mean"))
    for own, total, mean in zip(CHOICES, sums, means, strict=True):
        for text, a, b in zip(own, total, mean, strict=True):
            assert b == pytest.approx(a / len(system.main.tokenizer(text).input_ids), rel=1e-5)


def test_mistakes(run_config: Callable[..., RunConfig]):
    config = run_config()
    system = HartModel.from_config(config.model, config.data)
    main = system.main
    with pytest.raises(HartError, match="query 2 of 2 has no choices"):
        score_choices(main, ["a", "b"], [["c"], []])
    with pytest.raises(HartError, match="2 queries, and choices for 1"):
        score_choices(main, ["a", "b"], [["c"]])
    with pytest.raises(HartError, match="query 1 of 1 is empty"):
        score_choices(main, [" "], [["c"]])
    with pytest.raises(HartError, match="normalisation must be one of sum, mean"):
        score_choices(main, ["a"], [["c"]], normalisation="max")  # type: ignore[arg-type]
    with pytest.raises(HartError, match="adaptation of 2 tasks cannot serve 3 queries"):
        score_choices(main, QUERIES, CHOICES, system.adapt(TASKS[:2]))
