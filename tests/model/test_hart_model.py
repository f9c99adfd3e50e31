"""The whole system: gradients, adaptation, saving, and refused input."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hart.data.collate import Collator
from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.data.sampling import TrainingDataset
from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.hart_model import HartModel
from hart.model.scoring import score_choices
from hart.training.config import DataConfig, ModelConfig
from hart.training.losses import prediction_loss

from .conftest import NEW_TOKENS, QUERIES, TASKS, make

BATCH = 4
ROUNDING = 1e-5


def batch_of(system: HartModel, data_dir: Path) -> dict[str, Tensor]:
    tasks = [Task.from_file(path) for path in sorted((data_dir / "tasks").glob("*.json"))]
    dataset = TrainingDataset(tasks, system.main.tokenizer, system.input_format, length=BATCH, seed=0)
    batch = Collator(system.main.tokenizer.pad_token_id)([dataset[i] for i in range(BATCH)])
    return {name: values for name, values in batch.items() if name not in ("slots", "task_index")}


def gradients(system: HartModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    output = system(**batch)
    total, _ = prediction_loss(output.logits, batch["labels"])
    (total + output.states.square().sum()).backward()
    return {name: p.grad for name, p in system.named_parameters() if p.grad is not None}


# --- training pass ---------------------------------------------------------------------------------------


def test_gradients_reach_all_of_the_hypernetwork_and_nothing_of_the_main_model(variant: HartModel, toy_data_dir: Path):
    variant.train()
    found = gradients(variant, batch_of(variant, toy_data_dir))
    expected = {f"hypernetwork.{name}" for name, _ in variant.hypernetwork.named_parameters()}
    assert set(found) == expected
    assert all(gradient.abs().sum() > 0 for gradient in found.values())
    assert not any(parameter.requires_grad for parameter in variant.main.parameters())


def test_gradient_checkpointing_gives_the_same_gradients(tiny_base_dir: Path, toy_data_dir: Path):
    plain = make(tiny_base_dir, dropout=0.0).train()
    recomputed = make(tiny_base_dir, dropout=0.0, gradient_checkpointing=True).train()
    assert recomputed.hypernetwork.encoder.is_activation_checkpointing
    assert recomputed.hypernetwork.decoder.gradient_checkpointing
    assert recomputed.main.model.is_activation_checkpointing and recomputed.main.model.training
    batch = batch_of(plain, toy_data_dir)
    expected, found = gradients(plain, batch), gradients(recomputed, batch)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        # Where the parts of a gradient cancel, their rounding stays.
        rounding = ROUNDING * gradient.abs().max().item()
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=rounding, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_main_model_has_no_dropout_in_training(tiny_base_dir: Path, toy_data_dir: Path):
    system = make(tiny_base_dir, dropout=0.0).train()
    batch = batch_of(system, toy_data_dir)
    assert torch.equal(system(**batch).logits, system(**batch).logits)
    dropping = make(tiny_base_dir).train()
    assert not torch.equal(dropping(**batch).logits, dropping(**batch).logits)


def test_seed_decides_the_new_weights(tiny_base_dir: Path):
    one, same, other = (make(tiny_base_dir, seed=seed).hypernetwork.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = {name for name in one if not torch.equal(one[name], other[name])}
    assert drawn and all(name.startswith(("heads", "scheme")) for name in drawn)


# --- adaptation ------------------------------------------------------------------------------------------


def test_adapting_a_batch_is_adapting_each_task_alone(variant: HartModel):
    together = variant.adapt(TASKS)
    assert len(together) == len(TASKS)
    for row, task in enumerate(TASKS):
        one, alone = together[row], variant.adapt(task)
        assert one.tasks == alone.tasks and one.blocks.keys() == alone.blocks.keys()
        for name, values in alone.blocks.items():
            torch.testing.assert_close(one.blocks[name], values)
        torch.testing.assert_close(one.memory, alone.memory)
        assert (one.memory_mask is None) == (alone.memory_mask is None)


def test_a_batch_that_mixes_tasks_is_answered_like_each_query_alone(variant: HartModel):
    mixed = variant.generate(QUERIES, variant.adapt(TASKS))
    alone = [variant.generate(q, variant.adapt(t))[0] for q, t in zip(QUERIES, TASKS, strict=True)]
    assert mixed == alone
    swapped = variant.generate(QUERIES, variant.adapt(TASKS[::-1]))
    assert swapped != mixed, "the adaptation makes no difference, so the test says nothing"


def test_adapting_in_training_mode_has_no_dropout_and_keeps_the_mode(system: HartModel):
    expected = system.adapt(TASKS[0])
    system.train()
    found = system.adapt(TASKS[0])
    assert system.training and system.hypernetwork.training and not system.main.model.training
    for name, values in expected.blocks.items():
        assert torch.equal(found.blocks[name], values)
    assert not any(values.requires_grad for values in found.blocks.values())


def test_failed_adaptation_keeps_the_mode(system: HartModel, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(system.hypernetwork, "forward", fail)
    system.train()
    with pytest.raises(RuntimeError, match="out of memory"):
        system.adapt(TASKS[0])
    assert system.training


def test_input_format_decides_what_is_read(tiny_base_dir: Path):
    system = make(tiny_base_dir).eval()
    explained = Task(TASKS[0].definition, [("one two", "two one", "The order is turned.")])
    system.input_format = InputFormat(explanations=True)
    with_explanation = system.adapt(explained)
    system.input_format = InputFormat(explanations=False)
    assert with_explanation.memory is not None
    assert with_explanation.memory.shape[1] > system.adapt(explained).memory.shape[1]


def test_score_has_the_limits_of_the_input_format(system: HartModel):
    adaptation = system.adapt(TASKS[0])
    limits = {"max_query_length": system.input_format.max_query_length, "max_target_length": NEW_TOKENS}
    query, choices = "one two " * 40, ["cat", "the cat sat on the mat in order"]
    expected = score_choices(system.main, [query], [choices], adaptation, **limits)[0]
    assert system.score(query, choices, adaptation) == expected
    assert expected != score_choices(system.main, [query], [choices], adaptation, max_query_length=384)[0]


def test_columns_and_generators_are_lists(system: HartModel):
    adaptations = system.adapt(task for task in TASKS)
    assert len(adaptations) == len(TASKS)
    expected = system.generate(QUERIES, adaptations[0])
    assert system.generate(np.array(QUERIES), adaptations[0]) == expected
    assert system.generate((query for query in QUERIES), adaptations[0]) == expected
    choices = ["one", "the mat"]
    scores = system.score(QUERIES[0], choices, adaptations[0])
    assert system.score(QUERIES[0], np.array(choices), adaptations[0]) == scores
    assert system.score(QUERIES[0], (choice for choice in choices), adaptations[0]) == scores


def test_no_task_is_refused(system: HartModel):
    with pytest.raises(HartError, match="at least one task"):
        system.adapt([])
    for wrong in ("Write the first word.", {"Definition": "Write."}, [("a", "b")], 3):
        with pytest.raises(HartError, match=r"adapt needs a hart.Task, or a list of them: Task\(definition"):
            system.adapt(wrong)


# --- nothing happens in silence ---------------------------------------------------------------------------


def test_a_hypernetwork_without_demonstrations_is_refused(system: HartModel, tiny_base_dir: Path, toy_data_dir: Path):
    batch = batch_of(system, toy_data_dir)
    for missing in (("demo_ids",), ("demo_mask",), ("demo_ids", "demo_mask")):
        given = {name: values for name, values in batch.items() if name not in missing}
        with pytest.raises(HartError, match="demo_ids and demo_mask are for a hypernetwork: give both"):
            system(**given)
    plain = HartModel(system.main, None, train_main=True)
    with pytest.raises(HartError, match="this system has none; leave them out"):
        plain(**batch)
    batch["demo_ids"], batch["demo_mask"] = batch["demo_ids"][:3], batch["demo_mask"][:3]
    with pytest.raises(HartError, match="demo_ids has 3 rows, which must divide the 4 queries"):
        system(**batch)


def test_memory_and_mask_belong_together(system: HartModel):
    ids, mask = system.main.pad([[5, 6, 1]])
    memory = torch.zeros(1, 4, system.main.shape.d_model)
    for given in ({"memory": memory}, {"memory_mask": torch.ones(1, 4)}):
        with pytest.raises(HartError, match="memory and memory_mask must be given together"):
            system.main(ids, mask, labels=ids, **given)


def test_one_text_is_no_list_of_choices_or_queries(system: HartModel):
    adaptation = system.adapt(TASKS[0])
    with pytest.raises(HartError, match="the choices of query 1 of 1 are one text; give a list of texts"):
        system.score("the cat", "pear", adaptation)
    with pytest.raises(HartError, match="the choices of query 2 of 2 are one text"):
        score_choices(system.main, ["a", "b"], [["x"], "yz"], adaptation)  # type: ignore[list-item]
    with pytest.raises(HartError, match="query 1 of 1: the choice 3 must be a text"):
        system.score("the cat", [3], adaptation)  # type: ignore[list-item]
    with pytest.raises(HartError, match="query 1 of 1: the choice None must be a text"):
        system.score("the cat", ["a", None], adaptation)  # type: ignore[list-item]
    with pytest.raises(HartError, match="the choices of query 1 of 1 must be a list of texts, not NoneType"):
        system.score("the cat", None, adaptation)  # type: ignore[arg-type]
    for nested in (["the cat"], [["the"]], [1.5], [True]):
        with pytest.raises(HartError, match=r"query 1 of 1 must be a text or a list of token ids, not a list with "):
            system.main.generate([nested], adaptation)  # type: ignore[list-item]
    with pytest.raises(HartError, match="score: query must be one text, not list; for many take classify, or hart"):
        system.score(["the cat"], ["a"], adaptation)  # type: ignore[arg-type]
    with pytest.raises(HartError, match="queries must be a list of texts, not dict"):
        system.generate({"the cat": 1}, adaptation)  # type: ignore[arg-type]
    with pytest.raises(HartError, match="query 2 of 2 must be a text or a list of token ids, not int"):
        system.generate(["the cat", 1], adaptation)  # type: ignore[list-item]
    for several, made in (([adaptation, adaptation], "list"), ("folder", "str")):
        with pytest.raises(HartError, match=f"not a {made}; Adaptation.stack makes one of several"):
            system.generate(["the", "cat"], several)  # type: ignore[arg-type]
    with pytest.raises(HartError, match="queries must be a list of texts, not one text"):
        score_choices(system.main, "a", [["x"]], adaptation)  # type: ignore[arg-type]
    for options, message in (
        ({"batch_size": -1}, "batch_size must be"),
        ({"max_query_length": 0}, "max_query_length must be"),
        ({"max_target_length": 1}, "max_target_length must be a whole number of at least 2, not 1"),
    ):
        with pytest.raises(HartError, match=message):
            system.score("a", ["x", "y"], adaptation, **options)


def test_demonstrations_that_are_not_read_are_told(system: HartModel, caplog: pytest.LogCaptureFixture):
    system.adapt(TASKS[:2])
    assert not caplog.messages
    system.adapt(TASKS[2])
    assert caplog.messages == ["task count: reads 2 of 3 demonstrations"]
    caplog.clear()
    long = Task("Do it.", [("one two " * 40, "a"), ("b", "c")], name="long")
    system.adapt(long)
    assert caplog.messages == ["task long: left out demonstration 1, 2 of 2 to stay within 128 tokens"]
    caplog.clear()
    cuts = Cuts()
    system.adapt([TASKS[2], long], cuts=cuts)
    assert cuts and not caplog.messages, "left to the caller"


def test_queries_and_choices_that_are_cut_are_told(system: HartModel, caplog: pytest.LogCaptureFixture):
    adaptation = system.adapt(TASKS[0])
    long = "one two three " * 20
    system.generate(["the cat", long, long], adaptation)
    assert caplog.messages == [
        "query 2 of 3: cut the end of the query to stay within 32 tokens; the same for query 3 of 3"
    ]
    caplog.clear()
    system.score("the cat", ["a", long], adaptation)
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        f"cut the end of the target to stay within {NEW_TOKENS} tokens"
    ]
    caplog.clear()
    system.generate(["the cat", long], adaptation, cuts=Cuts())
    assert not caplog.messages


def test_the_un_adapted_base_can_be_asked(system: HartModel):
    assert system.generate(QUERIES, max_new_tokens=3) == system.main.generate(QUERIES, max_new_tokens=3)
    assert system.score(QUERIES[0], ["a", "b"]) == score_choices(system.main, QUERIES[:1], [["a", "b"]])[0]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"demonstrations_to": "nowhere"}, "task count: is not read: this model answers queries without a definition"),
        ({"prompt_format": "prompts", "num_demonstrations": 3}, "task count: its definition is not read"),
        ({"num_demonstrations": 1}, "task count: reads 1 of 3 demonstrations"),
        ({"num_demonstrations": 3}, None),
    ],
)
def test_what_a_format_leaves_unread_is_told(form: dict, message: str | None, caplog: pytest.LogCaptureFixture):
    cuts = Cuts()
    InputFormat(**form).note_unread(TASKS[2], cuts)
    cuts.tell(logging.getLogger("hart"))
    assert [told.startswith(message or "") for told in caplog.messages] == ([True] if message else [])


def test_damaged_weights_do_not_adapt(system: HartModel):
    with torch.no_grad():
        next(system.hypernetwork.heads.parameters()).fill_(float("nan"))
    with pytest.raises(HartError, match="generates NaN or infinite parameters"):
        system.adapt(TASKS[0])


def test_a_limit_that_would_not_act_is_refused(tiny_base_dir: Path):
    model = ModelConfig(base=str(tiny_base_dir), weights="none", train_main=True, fusion=False, peft=[])
    system = HartModel.from_config(model, DataConfig(demonstrations_to="main", max_demonstrations_length=200))
    adaptation = system.adapt(TASKS[0])
    with pytest.raises(HartError, match="max_query_length: this model reads .* together, at most 200 tokens"):
        system.generate("the cat", adaptation, max_query_length=20)
    with pytest.raises(HartError, match="max_query_length: this model reads"):
        system.score("the cat", ["a", "b"], adaptation, max_query_length=20)
