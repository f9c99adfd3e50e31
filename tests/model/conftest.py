"""Fixtures: a small system whose generated parameters change a random base's answers, complete and in parts."""

from pathlib import Path

import pytest
import torch

from hart.data.tasks import Task
from hart.model.hart_model import HartModel
from hart.training.config import DataConfig, ModelConfig

NEW_TOKENS = 6
TASKS = [
    Task("Write the words in reverse order.", [("one two", "two one"), ("the cat", "cat the")], name="reverse"),
    Task("Write the first word.", [("cat sat on the mat", "cat")], name="first"),
    Task("Count.", [("a b c", "3"), ("a", "1"), ("left out", "2")], name="count"),
]
QUERIES = ["the mat", "one two three one two three", "in order"]

PREFIX = [{"kind": "prefix", "length": 4}]
VARIANTS = {
    "prefix and fusion": {"peft": PREFIX, "fusion": True},
    "prefix alone": {"peft": PREFIX, "fusion": False},
    "fusion alone": {"peft": [], "fusion": True},
}


def make(base: Path, *, seed: int = 0, **model: object) -> HartModel:
    settings: dict = {"decoder_layers": 2, "peft": PREFIX, **model}
    data = DataConfig(max_demonstrations_length=128, max_query_length=32, max_target_length=NEW_TOKENS)
    system = HartModel.from_config(ModelConfig(base=str(base), **settings), data, seed=seed)
    # Prefixes of their initial size hardly change what a random base says; these do.
    with torch.no_grad():
        for head in system.hypernetwork.heads.heads():
            head.second.mul_(10)
    return system


@pytest.fixture
def system(tiny_base_dir: Path) -> HartModel:
    return make(tiny_base_dir).eval()


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, tiny_base_dir: Path) -> HartModel:
    return make(tiny_base_dir, **VARIANTS[request.param]).eval()
