"""The bundled models: sizes, tokenizer, and the scores of their cards."""

from pathlib import Path

import pytest
import torch

from hart import HartModel
from hart.data.collate import Collator
from hart.data.procedural import load_procedural
from hart.data.procedural.lexicon import vocabulary
from hart.data.sampling import TrainingDataset
from hart.evaluation.answers import ANSWERS
from hart.evaluation.run import evaluate
from hart.evaluation.systems import base_system, hart_system
from hart.model.bundled import BASES, MODELS, resolve_base, resolve_model
from hart.model.main_model import MainModel
from hart.training.config import ModelConfig
from hart.training.losses import prediction_loss
from hart.training.quickstart import quickstart_config

BASE_MIB, ALL_MIB = 16, 40
TASKS, INSTANCES, ROWS = 6, 5, 64


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest) -> MainModel:
    return MainModel.from_pretrained(request.param)


@pytest.fixture(scope="module", params=MODELS)
def mini(request: pytest.FixtureRequest) -> HartModel:
    return HartModel.from_pretrained(request.param)


@pytest.mark.parametrize("names", [("mini-base", "mini"), ("mini-causal-base", "mini-causal")])
def test_sizes(names: tuple[str, str]) -> None:
    folders = Path(resolve_base(names[0])), Path(resolve_model(names[1]))
    weights = [folder / "model.safetensors" for folder in folders]
    assert weights[0].stat().st_size <= BASE_MIB * 2**20
    assert sum(path.stat().st_size for path in weights) <= ALL_MIB * 2**20
    for folder in folders:
        assert "score" in (folder / "README.md").read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("text", ["cat dog 12", "naïve café", "日本語 🙂", "a\nb\tc  d", "x" * 100])
def test_any_text_comes_back_from_its_tokens(base: MainModel, text: str) -> None:
    ids = base.tokenizer(text)["input_ids"]
    if base.shape.has_encoder:
        assert ids[-1] == base.tokenizer.eos_token_id
    else:
        assert ids[0] == base.tokenizer.bos_token_id
    assert base.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_words_of_the_collection_are_one_token_each(base: MainModel) -> None:
    assert [word for word in vocabulary() if len(base.tokenizer.tokenize(word)) != 1] == []


@pytest.mark.parametrize("name", BASES)
def test_the_base_is_deep_and_bf16(name: str) -> None:
    main = MainModel.from_pretrained(name, dtype="auto")
    assert all(main.shape.layers(stack) >= 6 for stack in main.shape.stacks)
    assert {p.dtype for p in main.model.parameters()} == {torch.bfloat16}


def test_the_trained_model_solves_more_unseen_tasks_than_its_base(mini: HartModel) -> None:
    unseen = load_procedural("test", max_instances=INSTANCES)
    tasks = unseen[:: len(unseen) // TASKS]
    adapted = evaluate(hart_system(mini), tasks, ANSWERS).overall
    bare = evaluate(base_system(mini.main, mini.input_format, in_context=False), tasks, ANSWERS).overall
    assert adapted.exact_match > bare.exact_match
    assert adapted.rouge_l > bare.rouge_l


@pytest.mark.parametrize("base", ["mini-base"], indirect=True)
def test_the_first_loss_with_generated_prefixes_is_near_the_unadapted_one(base: MainModel) -> None:
    """A tenth of the way from the un-adapted loss to that of a uniform guess; fusion is left out (see from_base)."""
    config = quickstart_config("unused")
    model: ModelConfig = config.model.changed(fusion=False)
    system = HartModel.from_config(model, config.data).eval()
    dataset = TrainingDataset(
        load_procedural("train", max_instances=INSTANCES),
        base.tokenizer,
        system.input_format,
        length=ROWS,
        seed=0,
    )
    batch = Collator(base.tokenizer.pad_token_id)([dataset[i] for i in range(ROWS)])
    query, labels = (batch["query_ids"], batch["query_mask"]), batch["labels"]
    with torch.no_grad():
        total, count = prediction_loss(base(*query, labels=labels).logits, labels)
        output = system(*query, labels, batch["demo_ids"], batch["demo_mask"])
        started, _ = prediction_loss(output.logits, labels)
    uniform = torch.tensor(float(len(base.tokenizer))).log()
    assert (started - total).abs() / count < 0.1 * uniform
