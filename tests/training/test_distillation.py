"""A teacher's loss against loops in plain torch, its pass against a direct call, and equal runs."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import debug_launcher
from decoder_models import decoder_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5ForConditionalGeneration

from hart.data.collate import Collator, pad
from hart.data.collections import load_tasks
from hart.data.prompts import render_in_context
from hart.errors import HartError
from hart.model.hart_model import HartModel
from hart.model.main_model import MainModel
from hart.training.config import RunConfig
from hart.training.distillation import Distillation, divergence, hidden_loss, make_distillation, what_is_said
from hart.training.loop import Loop
from hart.training.run_folder import read_metrics
from hart.training.sweep_plan import plan
from hart.training.train import train, training_examples

Build = Callable[..., RunConfig]
LABELS = torch.tensor([[4, 0, -100], [2, -100, -100]])
TARGETS = [(0, 0), (0, 1), (1, 0)]


def kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, top_k: int | None = None):
    return divergence(student, what_is_said(teacher, LABELS, temperature, top_k), LABELS, temperature)


def configured(run_config: Build, name: str = "run", **settings: Any) -> RunConfig:
    """A run with the distillation section `distillation`, by default the base as its own teacher."""
    distillation = {"teacher": "base", **settings.pop("distillation", {})}
    settings["model"] = {"dropout": 0.0, **settings.get("model", {})}
    return run_config(name, **settings).changed(distillation=distillation)


def prepared(config: RunConfig) -> tuple[HartModel, Distillation, dict[str, Tensor], list[Any]]:
    """System, teacher, a batch of the run, and its examples."""
    system = HartModel.from_config(config.model, config.data)
    teacher = make_distillation(config, system)
    assert teacher is not None
    tokenizer, reader = system.main.tokenizer, system.reader
    tasks = load_tasks(config.data, "train")
    dataset = training_examples(config, tasks, tokenizer, None if reader is tokenizer else reader, teacher.form)
    examples = [dataset[i] for i in range(config.training.batch_size)]
    shared = config.training.queries_per_task
    collate = Collator(tokenizer.pad_token_id, queries_per_task=shared, demo_pad_token_id=system.reader.pad_token_id)
    return system, teacher, collate(examples), examples


def said(teacher: Distillation, batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities of the next token (b u v), 0 where there is no target."""
    found = teacher.lesson(dict(batch))._said
    assert found.chosen is None
    log_p = torch.zeros(*batch["labels"].shape, found.log_p.shape[-1])
    log_p[batch["labels"] != -100] = found.log_p
    return log_p


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 6, 7, 99])
def test_divergence_is_that_of_a_loop(temperature: float, top_k: int | None) -> None:
    student, teacher = torch.randn(2, 3, 7), 3 * torch.randn(2, 3, 7)
    expected = 0.0
    for row, column in TARGETS:
        p = [math.exp(x / temperature) for x in teacher[row, column].tolist()]
        q = [math.exp(x / temperature) for x in student[row, column].tolist()]
        pairs = sorted(((a / sum(p), b / sum(q)) for a, b in zip(p, q, strict=True)), reverse=True)
        if top_k is not None and top_k < 7:
            rest = tuple(sum(each) for each in zip(*pairs[top_k:], strict=True))
            pairs = [*pairs[:top_k], rest]  # type: ignore[list-item]
        expected += temperature**2 * sum(a * math.log(a / b) for a, b in pairs)
    found = kd(student, teacher, temperature, top_k)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_classes_never_add_to_the_divergence() -> None:
    student, teacher = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    found = [kd(student, teacher, 1.0, k).item() for k in range(1, 8)]
    # One token left is a class of its own.
    assert found[:6] == sorted(found[:6]) and found[0] > 0 and found[5] == pytest.approx(found[6], rel=1e-5)
    assert found[-1] == kd(student, teacher).item()


def test_gradient_is_the_difference_of_probabilities() -> None:
    """Times T, of the target tokens alone; the teacher has none. In float32 whatever the logits are."""
    student, teacher = torch.randn(2, 3, 7, requires_grad=True), torch.randn(2, 3, 7)
    kd(student, teacher, 2.0).backward()
    expected = 2.0 * ((student.detach() / 2).softmax(-1) - (teacher / 2).softmax(-1))
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected * (LABELS != -100)[..., None])
    half = kd(student.bfloat16(), teacher.bfloat16())
    assert half.dtype == torch.float32
    assert kd(teacher, teacher, 3.0, 2).item() == 0


def test_hidden_distance_is_that_of_a_loop() -> None:
    student, teacher = torch.randn(4, 2, 3, 5), torch.randn(4, 2, 3, 5)
    expected = sum(
        (student[layer, row, column] - teacher[layer, row, column]).abs().sum()
        / teacher[layer, row, column].abs().sum()
        / 4
        for layer in range(4)
        for row, column in TARGETS
    )
    torch.testing.assert_close(hidden_loss(student, teacher, LABELS), expected)


@pytest.mark.parametrize("training", [{}, {"queries_per_task": 2}])
@pytest.mark.parametrize("demonstrations", ["fixed", "sampled"])
def test_base_in_context_is_the_stock_model_on_the_written_text(
    run_config: Build, tiny_t5: T5ForConditionalGeneration, demonstrations: str, training: dict[str, Any]
) -> None:
    data = {"demonstrations": demonstrations, "max_demonstrations_length": 512}
    config = configured(run_config, data=data, **training)
    system, teacher, batch, examples = prepared(config)
    tokenizer = system.main.tokenizer
    log_p = said(teacher, batch)
    tasks = load_tasks(config.data, "train")
    for row, example in enumerate(examples):
        query = tokenizer.decode(example["query_ids"], skip_special_tokens=True)
        if demonstrations == "fixed":
            text = render_in_context(tasks[example["task_index"]], query)
            assert example["teacher_ids"] == tokenizer(text)["input_ids"]
        else:
            # What the student's hypernetwork reads, before the same query.
            shown = example["demo_ids"][0][:-1]
            assert example["teacher_ids"][: len(shown) - 1] == shown[:-1]
            read = tokenizer.decode(example["teacher_ids"][len(shown) - 1 :], skip_special_tokens=True)
            assert f"Input: {query}" in read
        labels = torch.tensor([example["labels"]])
        alone = tiny_t5(input_ids=torch.tensor([example["teacher_ids"]]), labels=labels).logits
        torch.testing.assert_close(log_p[row, : labels.shape[1]], alone[0].log_softmax(-1), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def llama_dir(tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with the tokenizer of the tiny T5."""
    folder = tmp_path_factory.mktemp("llama")
    for path in tiny_base_dir.glob("token*"):
        shutil.copy(path, folder)
    tokens = MainModel.from_pretrained(str(tiny_base_dir)).tokenizer
    decoder_model("llama", len(tokens)).save_pretrained(folder)
    return folder


def of_llama(llama_dir: Path, tiny_base_dir: Path, **more: Any) -> dict[str, Any]:
    kinds = [{"kind": "lora", "rank": 2}]
    start = {"base": str(llama_dir), "hypernetwork_init": str(tiny_base_dir), "fusion": False}
    return {**start, "decoder_layers": 1, "peft": kinds, **more}


def test_a_decoder_only_teacher_predicts_the_answer_behind_its_text(
    run_config: Build, llama_dir: Path, tiny_base_dir: Path
) -> None:
    config = configured(run_config, model=of_llama(llama_dir, tiny_base_dir), distillation={"hidden_weight": 1.0})
    system, teacher, batch, examples = prepared(config)
    lesson, log_p = teacher.lesson(dict(batch)), said(teacher, batch)
    stock = decoder_model("llama", len(system.main.tokenizer))
    for row, example in enumerate(examples):
        tokens, answer = example["teacher_ids"], example["labels"]
        assert system.main.tokenizer.eos_token_id not in tokens, "an un-adapted base expects another text behind it"
        whole = torch.tensor([[*tokens, *answer[:-1]]])
        made = stock(input_ids=whole, output_hidden_states=True)
        alone = made.logits[0, len(tokens) - 1 :]
        torch.testing.assert_close(log_p[row, : len(answer)], alone.log_softmax(-1), rtol=1e-4, atol=1e-4)
        assert lesson._hidden is not None
        # The last of transformers' list has passed the final norm.
        expected = torch.stack(made.hidden_states[1:-1])[:, 0, len(tokens) - 1 :]
        torch.testing.assert_close(lesson._hidden.stacked()[:-1, row, : len(answer)], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_student_that_reads_what_its_teacher_reads_has_nothing_to_learn(
    run_config: Build, llama_dir: Path, tiny_base_dir: Path, family: str
) -> None:
    """The same weights over the same text, without anything generated: no divergence, equal hidden states."""
    model = of_llama(llama_dir, tiny_base_dir) if family == "llama" else {}
    config = configured(run_config, model=model, distillation={"hidden_weight": 1.0})
    system, teacher, batch, _ = prepared(config)
    ids, mask, labels = (batch[name] for name in ("teacher_ids", "teacher_mask", "labels"))
    query_ids, query_mask = batch["query_ids"], batch["query_mask"]
    lesson = teacher.lesson(batch)
    with lesson.watching():
        same = system.main(ids, mask, labels).logits
    assert all(value.item() == pytest.approx(0, abs=1e-5) for value in lesson.losses(same, labels).values())
    with lesson.watching():
        other = system.main(query_ids, query_mask, labels).logits
    assert all(value.item() > 0.1 for value in lesson.losses(other, labels).values())


def history(config: RunConfig) -> list[dict[str, Any]]:
    final = train(config, quiet=True)
    return read_metrics(final.parent / "metrics.jsonl")


def weights_of(config: RunConfig) -> dict[str, Tensor]:
    return load_file(Path(config.training.output_dir) / "final" / "model.safetensors")


def test_without_weight_nothing_changes(run_config: Build) -> None:
    plain = configured(run_config, "plain", distillation={"teacher": None}, model={"dropout": 0.2})
    taught = configured(run_config, "taught", distillation={"weight": 0.0}, model={"dropout": 0.2})
    rows, others = history(plain), history(taught)
    for row, other in zip(rows, others, strict=True):
        assert other.pop("distillation_loss") > 0
        row.pop("seconds_per_step"), other.pop("seconds_per_step")
    assert rows == others
    expected, found = weights_of(plain), weights_of(taught)
    assert all(torch.equal(found[name], values) for name, values in expected.items())


def test_the_loss_is_the_weighted_sum(run_config: Build) -> None:
    """TAGI's: cross entropy + 5 · KD, T = 3."""
    tagi = {"weight": 5.0, "temperature": 3.0}
    rows = history(configured(run_config, distillation={**tagi, "hidden_weight": 0.5}, alpha=2.0))
    for row in rows:
        parts = row["prediction_loss"] + 5 * row["distillation_loss"] + 0.5 * row["hidden_loss"]
        assert row["loss"] == pytest.approx(parts + 2 * row["consistency_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("distillation", "model"),
    [({"top_k": 4, "hidden_weight": 1.0}, {}), ({"hidden_weight": 1.0}, {"gradient_checkpointing": True})],
)
def test_accumulated_passes_equal_one_pass(run_config: Build, distillation: dict[str, Any], model: dict[str, Any]):
    """Also where activations are computed anew for the backward pass."""
    shared = {"queries_per_task": 2, "distillation": distillation}
    whole = configured(run_config, "whole", **shared)
    cut = configured(run_config, "cut", micro_batch_size=2, model=model, **shared)
    for row, other in zip(history(whole), history(cut), strict=True):
        for name in ("loss", "prediction_loss", "distillation_loss", "hidden_loss", "grad_norm"):
            assert other[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), (row["step"], name)
    expected, found = weights_of(whole), weights_of(cut)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-4)


def test_two_halves_equal_one_run(run_config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"distillation": {"temperature": 2.0}, "model": {"dropout": 0.2}, "num_threads": 1}
    whole, halves = (configured(run_config, name, **settings) for name in ("whole", "halves"))
    expected = history(whole)
    loss = Loop.loss

    def stop(self: Loop, *args: Any) -> Any:
        if self.step == 2:
            raise KeyboardInterrupt
        return loss(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "loss", stop)
        with pytest.raises(KeyboardInterrupt):
            train(halves, quiet=True)
    found = history(halves)
    for row, other in zip(expected, found, strict=True):
        row.pop("seconds_per_step"), other.pop("seconds_per_step")
    assert found == expected
    assert all(torch.equal(weights_of(halves)[name], values) for name, values in weights_of(whole).items())


def in_this_process(config: RunConfig) -> None:
    train(config, quiet=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a forked process cannot use a GPU that its parent may use")
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_equal_one(run_config: Build, tmp_path: Path) -> None:
    settings = {"distillation": {"hidden_weight": 1.0}, "num_threads": 1}
    expected = history(configured(run_config, "one", **settings))
    debug_launcher(in_this_process, (configured(run_config, "two", **settings),), num_processes=2)
    found = read_metrics(tmp_path / "two" / "metrics.jsonl")
    for row, other in zip(expected, found, strict=True):
        for name in ("loss", "prediction_loss", "distillation_loss", "hidden_loss", "grad_norm"):
            assert other[name] == pytest.approx(row[name], rel=1e-4), (row["step"], name)


def test_a_teacher_continues_text(run_config: Build, tiny_t5: T5ForConditionalGeneration, tmp_path: Path) -> None:
    """Pre-training on segments: the base reads context and query as one text, the student the query alone."""
    folder = tmp_path / "text"
    folder.mkdir()
    words = "the cat sat on mat one two three in order".split()
    documents = [" ".join(words[(i + j) % len(words)] for j in range(40)) for i in range(6)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    data = {"collection": "three_segments", "dir": str(folder), "max_document_tokens": 40}
    config = configured(run_config, data=data, alpha=0.0)
    system = HartModel.from_config(config.model, config.data)
    teacher = make_distillation(config, system)
    assert teacher is not None
    dataset = training_examples(config, [], system.main.tokenizer, None, teacher.form)
    examples = [dataset[i] for i in range(4)]
    batch = Collator(system.main.tokenizer.pad_token_id)(examples)
    log_p = said(teacher, batch)
    for row, example in enumerate(examples):
        whole = example["demo_ids"][0][:-1] + example["query_ids"]
        assert example["teacher_ids"] == whole
        labels = torch.tensor([example["labels"]])
        alone = tiny_t5(input_ids=torch.tensor([whole]), labels=labels).logits
        torch.testing.assert_close(log_p[row, : labels.shape[1]], alone[0].log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert all(row["distillation_loss"] > 0 for row in history(config))


@pytest.fixture
def few_shot(run_config: Build) -> Path:
    """A trained system whose main model reads the demonstrations."""
    model = {"weights": "none", "train_main": True, "fusion": False, "peft": []}
    data = {"demonstrations_to": "main"}
    return train(run_config("few-shot", model=model, data=data, alpha=0.0, max_steps=2), quiet=True)


def test_a_trained_system_teaches(run_config: Build, few_shot: Path) -> None:
    config = configured(run_config, distillation={"teacher": str(few_shot)})
    system, teacher, batch, examples = prepared(config)
    log_p, targets = said(teacher, batch), batch["labels"] != -100
    stock = T5ForConditionalGeneration.from_pretrained(few_shot / "main").eval()
    ids, mask = pad([example["teacher_ids"] for example in examples], 0)
    expected = stock(input_ids=ids, attention_mask=mask, labels=batch["labels"]).logits
    torch.testing.assert_close(log_p[targets], expected[targets].log_softmax(-1), rtol=1e-4, atol=1e-4)
    bare = system.main(ids, mask, batch["labels"]).logits
    assert (bare.log_softmax(-1) - log_p)[targets].abs().max() > 1e-3, "two steps have changed it"
    before = {name: values.clone() for name, values in teacher._teacher.state_dict().items()}
    assert history(config)[-1]["distillation_loss"] > 0
    assert all(torch.equal(values, before[name]) for name, values in teacher._teacher.state_dict().items())


def test_a_checkpoint_as_it_is_teaches_what_the_base_teaches(run_config: Build, tiny_base_dir: Path) -> None:
    *_, base, batch, _ = prepared(configured(run_config))
    *_, folder, _, _ = prepared(configured(run_config, distillation={"teacher": str(tiny_base_dir)}))
    assert torch.equal(said(base, batch), said(folder, batch))


def test_a_teacher_that_is_worse_than_the_bare_base_is_told(
    run_config: Build, few_shot: Path, tiny_base_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = shutil.copytree(few_shot, tmp_path / "bad")
    model = T5ForConditionalGeneration.from_pretrained(bad / "main")
    with torch.no_grad():
        model.lm_head.weight.mul_(-20)
    model.save_pretrained(bad / "main")
    with caplog.at_level(logging.WARNING):
        history(configured(run_config, distillation={"teacher": str(bad)}, max_steps=1))
    (said,) = (each for each in caplog.messages if "distillation.teacher" in each)
    *_, teacher, _, examples = prepared(configured(run_config, distillation={"teacher": str(bad)}, batch_size=8))
    entropies = []
    for stock, name in ((model.eval(), "teacher_ids"), (None, "query_ids")):
        stock = stock or T5ForConditionalGeneration.from_pretrained(tiny_base_dir).eval()
        losses = [
            (
                stock(input_ids=torch.tensor([each[name]]), labels=torch.tensor([each["labels"]])).loss,
                len(each["labels"]),
            )
            for each in examples
        ]
        entropies.append(sum(loss.item() * count for loss, count in losses) / sum(count for _, count in losses))
    assert f"{bad} has a cross entropy of {entropies[0]:.3f} nats" in said
    assert f"on the first 8 training examples, and the base without demonstrations {entropies[1]:.3f}:" in said


def test_what_is_no_teacher_is_refused_in_one_line(
    run_config: Build, few_shot: Path, tiny_base_dir: Path, tmp_path: Path
) -> None:
    def said(teacher: Path | str, **settings: Any) -> str:
        with pytest.raises(HartError, match=r"^distillation\.teacher: ") as caught:
            train(configured(run_config, "new", distillation={"teacher": str(teacher)}, **settings), quiet=True)
        assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()
        return str(caught.value)

    assert "no-such-folder: no such folder, and no such model" in said(tmp_path / "no-such-folder")
    reads = train(run_config("reads", max_steps=1), quiet=True)
    assert "reads demonstrations with a hypernetwork" in said(reads)
    config = json.loads((few_shot / "config.json").read_text())
    config["system"]["input_format"]["demonstrations_to"] = "nowhere"
    blind = shutil.copytree(few_shot, tmp_path / "blind")
    (blind / "config.json").write_text(json.dumps(config))
    assert "reads the query alone" in said(blind)
    other = said("mini-base")
    assert "mini-base has another vocabulary (4096 tokens, and 300)" in other and str(tiny_base_dir) in other
    tokens = shutil.copytree(tiny_base_dir, tmp_path / "tokens")
    written = json.loads((tokens / "tokenizer.json").read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tokens / "tokenizer.json").write_text(json.dumps(written))
    assert f"{tokens} has another tokenizer than {tiny_base_dir} (model.base)" in said(tokens)


def test_a_base_without_room_for_the_teachers_input_is_refused(
    run_config: Build, tiny_base_dir: Path, llama_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(llama_dir, tmp_path / "gpt2")
    decoder_model("gpt2", 300).save_pretrained(folder)
    model = of_llama(folder, tiny_base_dir)
    config = configured(run_config, model=model, data={"max_demonstrations_length": 500})
    with pytest.raises(HartError, match=r"reads up to 531 tokens .* 512 positions .*lower data\.max_demonstrations"):
        train(config, quiet=True)


def test_a_base_that_processes_divide_cannot_teach_and_a_folder_can(run_config: Build, tiny_base_dir: Path) -> None:
    _, base, *_ = prepared(configured(run_config))
    with pytest.raises(HartError, match=r"^distillation\.teacher: base is divided among the processes"):
        base.place(torch.device("cpu"), divided=True)
    base.place(torch.device("cpu"), divided=False)
    _, folder, *_ = prepared(configured(run_config, distillation={"teacher": str(tiny_base_dir)}))
    folder.place(torch.device("cpu"), divided=True)


def test_a_sweep_keeps_the_teacher(run_config: Build, tmp_path: Path) -> None:
    config = configured(run_config, distillation={"weight": 5.0})
    config.save(tmp_path / "taught.yaml")
    (run,) = plan(tmp_path / "sweep", [tmp_path / "taught.yaml"], [3])
    assert run.config.distillation == config.distillation and run.config.training.seed == 3


def test_a_run_is_not_continued_with_another_teacher(run_config: Build, tiny_base_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base_dir, tmp_path / "teacher")
    config = configured(run_config, distillation={"teacher": str(folder)}, max_steps=2)
    final = train(config, quiet=True)
    shutil.rmtree(final)
    assert train(config, quiet=True) == final
    shutil.rmtree(final)
    model = T5ForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(folder)
    with pytest.raises(HartError, match="distillation.teacher has changed since the run began"):
        train(config, quiet=True)
