"""Groups of demonstrations, and tasks whose demonstrations arrive over time."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decoder_models import frozen
from torch import Tensor

from hart.data.collate import pad_groups
from hart.data.config import DataConfig
from hart.data.tasks import Task
from hart.errors import HartError
from hart.hypernetwork.network import HyperNetwork
from hart.model.adaptation import Adaptation
from hart.model.config import ModelConfig
from hart.model.hart_model import HartModel

from .conftest import QUERIES

WORDS = "one two three the cat sat on mat in order".split()
MANY = Task("Write the first word.", [(f"{a} {b}", a) for a, b in zip(WORDS, WORDS[1:], strict=False)], name="many")
ROUNDING = {"rtol": 0, "atol": 1e-5}


def assert_same(found: Adaptation, expected: Adaptation) -> None:
    assert found.blocks.keys() == expected.blocks.keys()
    for name, values in expected.blocks.items():
        torch.testing.assert_close(found.blocks[name], values, **ROUNDING)
    for mine, theirs in ((found.memory, expected.memory), (found.memory_mask, expected.memory_mask)):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, **ROUNDING)


def grouped(task: Task, order: tuple[int, ...]) -> Task:
    """The task with its pairs of demonstrations in another order."""
    return replace(task, demonstrations=tuple(task.demonstrations[2 * at + n] for at in order for n in (0, 1)))


def test_a_memory_is_what_the_groups_were_encoded_to(system: HartModel) -> None:
    both = system.adapt(grouped(MANY, (0, 1)), demonstration_groups=2)
    alone = [system.adapt(grouped(MANY, (at,))).memory for at in (0, 1)]
    torch.testing.assert_close(both.memory, torch.cat(alone, dim=1), **ROUNDING)


def test_more_groups_change_what_is_generated_and_answered(system: HartModel) -> None:
    two, four = (system.adapt(MANY, demonstration_groups=count) for count in (1, 2))
    assert any(not torch.allclose(values, four.blocks[name], atol=1e-3) for name, values in two.blocks.items())
    assert system.generate(QUERIES, two) != system.generate(QUERIES, four)


def test_the_order_of_groups_does_not_matter(variant: HartModel) -> None:
    first, other = (variant.adapt(grouped(MANY, order), demonstration_groups=3) for order in ((0, 1, 2), (2, 0, 1)))
    for name, values in first.blocks.items():
        torch.testing.assert_close(other.blocks[name], values, **ROUNDING)
    if first.memory is not None:
        query = variant.score("one two", ["one", "two"], first)
        assert variant.score("one two", ["one", "two"], other) == pytest.approx(query, abs=1e-4)


def test_tasks_of_different_numbers_of_groups_share_a_pass(variant: HartModel) -> None:
    tasks = [grouped(MANY, (0, 1, 2)), grouped(MANY, (3,))]
    together = variant.adapt(tasks, demonstration_groups=3)
    for at, task in enumerate(tasks):
        alone = variant.adapt(task, demonstration_groups=3)
        for name, values in alone.blocks.items():
            torch.testing.assert_close(together[at].blocks[name], values, **ROUNDING)
        assert variant.generate(QUERIES, together[at]) == variant.generate(QUERIES, alone)


def batch(model: HartModel, tasks: list[Task], groups: int) -> dict[str, Tensor]:
    form = model.format_with_groups(groups)
    ids, mask = pad_groups([form.encode_groups(model.reader, task) for task in tasks], model.reader.pad_token_id)
    query = torch.tensor([[5, 6, 1]] * 2 * len(tasks))
    return {"demo_ids": ids, "demo_mask": mask, "query_ids": query, "query_mask": query.ne(0), "labels": query}


def test_gradients_come_from_every_group(system: HartModel) -> None:
    """Of a batch with one task of three groups and one of a single group."""
    inputs = batch(system, [grouped(MANY, (0, 1, 2)), grouped(MANY, (3,))], 3)
    embedded = system.hypernetwork.encoder.embed_tokens.weight
    system(**inputs).logits.square().sum().backward()
    used = inputs["demo_ids"][inputs["demo_mask"].bool()].unique()
    assert bool((embedded.grad[used].abs().sum(-1) > 0).all())


@pytest.mark.parametrize("encoder", ["t5", "main_model"])
def test_a_decoder_only_model_reads_groups(encoder: str, tiny_t5, tiny_tokenizer) -> None:
    main = frozen("llama", tiny_tokenizer)
    settings = {"decoder_layers": 2, "memory_in_front": True, "scheme": {"name": "causal"}}
    settings["peft"] = [{"kind": "lora", "rank": 2, "targets": ["q"]}]
    if encoder == "t5":
        network = HyperNetwork.from_base(main.model, source=tiny_t5, **settings)
    else:
        network = HyperNetwork.from_states(main.model, **settings)
    model = HartModel(main, network, fusion=False, reader=tiny_tokenizer).eval()
    one = model.adapt(grouped(MANY, (0,)))
    both, other = (model.adapt(grouped(MANY, order), demonstration_groups=2) for order in ((0, 1), (1, 0)))
    assert both.memory.shape[1] > one.memory.shape[1]
    scores = model.score("one two", ["one", "two"], both)
    assert model.score("one two", ["one", "two"], other) == pytest.approx(scores, abs=1e-4)
    assert_same(model.incremental(grouped(MANY, (0,))).add(MANY.demonstrations[2:4]).adaptation(), both)


def test_what_is_read_bit_by_bit_is_what_is_read_at_once(variant: HartModel) -> None:
    growing = variant.incremental(grouped(MANY, (0,)))
    assert_same(growing.adaptation(), variant.adapt(grouped(MANY, (0,))))
    growing.add(MANY.demonstrations[2:4]).add([(each.input, each.output) for each in MANY.demonstrations[4:8]])
    made = growing.adaptation()
    assert_same(made, variant.adapt(grouped(MANY, (0, 1, 2, 3)), demonstration_groups=4))
    assert made.tasks == variant.adapt(grouped(MANY, (0, 1, 2, 3)), demonstration_groups=4).tasks
    assert growing.task.demonstrations == MANY.demonstrations[:8]


def test_a_definition_is_read_alone_until_demonstrations_come(variant: HartModel, caplog) -> None:
    alone = replace(MANY, demonstrations=())
    growing = variant.incremental(alone)
    assert_same(growing.adaptation(), variant.adapt(alone))
    assert "task many: has no demonstrations, which every training task of the model had" in caplog.text
    assert_same(growing.add(MANY.demonstrations[:2]).adaptation(), variant.adapt(grouped(MANY, (0,))))


def test_demonstrations_alone_are_another_task_than_with_the_definition(variant: HartModel, caplog) -> None:
    shown = variant.adapt(replace(grouped(MANY, (0,)), definition=""))
    assert caplog.messages == ["task many: has no definition, which every training task of the model had"]
    whole = variant.adapt(grouped(MANY, (0,)))
    pairs = [(shown.blocks[name], values) for name, values in whole.blocks.items()]
    assert all(not torch.equal(*pair) for pair in pairs)
    if whole.memory is not None:
        assert shown.memory.shape[1] < whole.memory.shape[1]
    assert shown.read_tasks() == [replace(grouped(MANY, (0,)), definition="", instances=(), categories=())]


def test_adding_encodes_what_is_new_alone(system: HartModel, monkeypatch: pytest.MonkeyPatch) -> None:
    growing = system.incremental(grouped(MANY, (0, 1)))
    rows: list[int] = []
    encode = system.hypernetwork.encode
    monkeypatch.setattr(system.hypernetwork, "encode", lambda ids, mask: rows.append(len(ids)) or encode(ids, mask))
    growing.add(MANY.demonstrations[4:7]).adaptation()
    assert rows == [2]


def test_an_adaptation_says_how_many_groups_it_read(system: HartModel, tmp_path: Path) -> None:
    for made in (system.adapt(MANY, demonstration_groups=3), system.incremental(grouped(MANY, (0, 1, 2))).adaptation()):
        made.save_pretrained(tmp_path / "a")
        assert Adaptation.from_pretrained(tmp_path / "a").input_format.demonstration_groups == 3
        shutil.rmtree(tmp_path / "a")


def test_what_is_too_long_in_an_incremental_task_is_said(system: HartModel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    system.incremental(MANY).add([("the " * 200, "the")])
    assert "task many: left out demonstration 1 of 1 to stay within 128 tokens" in caplog.text


def learned(tiny_base_dir: Path, **data: object) -> HartModel:
    config = ModelConfig(base=str(tiny_base_dir), weights="learned", peft=[{"kind": "prefix"}], fusion=False)
    return HartModel.from_config(config, DataConfig(demonstrations_to="main", **data)).eval()


def test_an_adaptation_of_learned_weights_stays_what_it_was(tiny_base_dir: Path) -> None:
    model = learned(tiny_base_dir)
    adaptation = model.adapt([MANY, MANY])
    before = {name: values.clone() for name, values in adaptation.blocks.items()}
    with torch.no_grad():
        for parameter in model.learned.parameters():
            parameter.add_(1.0)
    assert before and all(torch.equal(adaptation.blocks[name], values) for name, values in before.items())
    assert not torch.equal(next(iter(model.adapt(MANY).blocks.values()))[0], next(iter(before.values()))[0])


def test_what_no_hypernetwork_reads_is_refused(tiny_base_dir: Path, system: HartModel) -> None:
    model = learned(tiny_base_dir)
    with pytest.raises(HartError, match="demonstration_groups: this model has no hypernetwork to read them"):
        model.adapt(MANY, demonstration_groups=2)
    with pytest.raises(HartError, match="has no hypernetwork to read tasks"):
        model.incremental(MANY)
    for wrong in (0, 1.5, "2"):
        with pytest.raises(
            HartError, match=f"demonstration_groups: must be a whole number of at least 1, not {wrong!r}"
        ):
            system.adapt(MANY, demonstration_groups=wrong)  # type: ignore[arg-type]
    with pytest.raises(HartError, match="add needs at least one demonstration"):
        system.incremental(MANY).add([])
    system.input_format = replace(system.input_format, num_demonstrations=0)
    with pytest.raises(HartError, match="the definition is empty, and the model reads nothing else"):
        system.adapt(Task(" ", [("a", "b")]))
    with pytest.raises(HartError, match="was trained without demonstrations"):
        system.incremental(MANY)
