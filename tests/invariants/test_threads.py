"""Threads and asyncio tasks that share one model get what each would get alone.

The models are tiny, so the interpreter is told to change threads often: between almost any two operations.
"""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import decoder_model
from transformers import PreTrainedTokenizerFast

from hart.data.tasks import Instance, Task
from hart.evaluation.run import evaluate_model
from hart.hypernetwork.step_linear import Steps, step_linears
from hart.model.adaptation import Adaptation
from hart.model.answering import encode_queries
from hart.model.export import merge
from hart.model.hart_model import HartModel
from hart.model.modes import evaluating
from hart.model.scoring import score_choices
from hart.runtime.identity import fingerprint
from hart.training.config import DataConfig, ModelConfig

THREADS, ROUNDS, NEW_TOKENS = 4, 12, 6
QUERIES = ["the mat", "one two three one two three", "in order"]
CHOICES = ["the mat on", "one", "in in order"]
TASKS = [
    Task("Write the words in reverse order.", [("one two", "two one"), ("the cat", "cat the")], name="reverse"),
    Task("Write the first word.", [("cat sat on the mat", "cat")], name="first"),
]
KINDS: dict[str, list[dict[str, Any]]] = {
    "prefix": [{"kind": "prefix", "length": 4}],
    "lora": [{"kind": "lora", "rank": 2, "targets": ["q", "v", "wi"]}],
    "all": [
        {"kind": "prefix", "length": 3, "cross": True},
        {"kind": "lora", "rank": 2},
        {"kind": "adapter", "bottleneck": 4},
        {"kind": "ia3"},
    ],
}
# A decoder-only model has no cross-attention.
DECODER_ONLY = {"kind": "prefix", "length": 3}, *KINDS["all"][1:]
CASES = {f"t5, {name}": ("t5", kinds) for name, kinds in KINDS.items()}
# GPT-2 has fused maps and learned positions, Gemma 3 rotary ones and windows.
CASES |= {f"{name}, all": (name, [*DECODER_ONLY]) for name in ("gpt2", "gemma3_text")}
# Here threads also read tasks with the model that others answer with.
OWN_STATES: dict[str, Any] = {"encoder": "main_model", "memory_in_front": True}
CASES |= {"qwen3, own states": ("qwen3", [*DECODER_ONLY])}


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def build(base: Path, peft: list[dict[str, Any]], **model: Any) -> HartModel:
    data = DataConfig(max_demonstrations_length=128, max_query_length=32, max_target_length=NEW_TOKENS)
    config = ModelConfig(base=str(base), decoder_layers=2, peft=peft, **model)
    system = HartModel.from_config(config, data)
    assert system.hypernetwork is not None
    with torch.no_grad():  # generated parameters that change every answer
        for head in system.hypernetwork.heads.heads():
            head.second.normal_(std=0.5)
    return system.eval()


@pytest.fixture(params=CASES)
def system(
    request: pytest.FixtureRequest, tiny_base_dir: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> HartModel:
    family, kinds = CASES[request.param]
    if family == "t5":
        return build(tiny_base_dir, kinds)
    decoder_model(family, len(tiny_tokenizer)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    reads: dict[str, Any] = OWN_STATES if "own states" in request.param else {"hypernetwork_init": str(tiny_base_dir)}
    return build(tmp_path, kinds, fusion=False, **reads)


def together(work: Callable[[int], None]) -> None:
    """`work(n)` in each of the threads; they begin at the same moment."""
    gate = threading.Barrier(THREADS)

    def start(number: int) -> None:
        gate.wait()
        work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(start, range(THREADS)))


def same(one: Adaptation, other: Adaptation) -> bool:
    return all(torch.allclose(values, other.blocks[name], atol=1e-5) for name, values in one.blocks.items())


def test_each_thread_gets_its_own_tasks_answers_and_scores(system: HartModel) -> None:
    adaptations = [system.adapt(task) for task in TASKS]
    answers = [system.generate(QUERIES, each) for each in adaptations]
    scores = [system.score(QUERIES[0], CHOICES, each) for each in adaptations]
    assert answers[0] != answers[1] and scores[0] != pytest.approx(scores[1], abs=1e-2)
    wrong: list[str] = []

    def work(number: int) -> None:
        for round_ in range(ROUNDS):
            own, count = (number + round_) % 2, 1 + round_ % len(QUERIES)
            if system.generate(QUERIES[:count], adaptations[own]) != answers[own][:count]:
                wrong.append("answers")
            if system.score(QUERIES[0], CHOICES, adaptations[own]) != pytest.approx(scores[own], abs=1e-4):
                wrong.append("scores")
            if round_ % 4 == 0 and not same(system.adapt(TASKS[own]), adaptations[own]):
                wrong.append("adaptation")

    together(work)
    assert not wrong
    assert system.generate(QUERIES, adaptations[0]) == answers[0]


def test_the_bare_base_stays_bare_beside_adapted_threads(system: HartModel) -> None:
    adaptation, bare = system.adapt(TASKS[0]), system.main.generate(QUERIES, max_new_tokens=NEW_TOKENS)
    found: list[list[str]] = []

    def work(number: int) -> None:
        for _ in range(ROUNDS):
            if number % 2:
                system.generate(QUERIES, adaptation)
            else:
                found.append(system.main.generate(QUERIES, max_new_tokens=NEW_TOKENS))

    together(work)
    assert found and all(each == bare for each in found)


def test_asyncio_tasks_and_their_threads(tiny_base_dir: Path) -> None:
    system = build(tiny_base_dir, KINDS["all"])
    adaptations = [system.adapt(task) for task in TASKS]
    expected = [system.generate(QUERIES, each) for each in adaptations]

    async def held(own: int) -> list[str]:
        """Bound by hand, and still bound after others have had their turn on the same thread."""
        ids, mask = system.main.pad(
            encode_queries(system.main.tokenizer, QUERIES, adaptations[own], system.input_format)
        )
        with system.main.adapted(adaptations[own], batch=len(QUERIES)):
            await asyncio.sleep(0)
            tokens: Any = system.main.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS)
            await asyncio.sleep(0)
        return system.main.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    async def all_of_them() -> list[list[str]]:
        threads = [asyncio.to_thread(system.generate, QUERIES, adaptations[i % 2]) for i in range(12)]
        return await asyncio.gather(*threads, *(held(i % 2) for i in range(6)))

    for number, answers in enumerate(asyncio.run(all_of_them())):
        assert answers == expected[number % 2]


def test_nobody_meets_dropout_and_the_mode_is_as_before(tiny_base_dir: Path) -> None:
    """Of threads that put a model into eval mode, the first to leave must not put it back under the others."""
    system = build(tiny_base_dir, KINDS["prefix"], train_main=True)
    adaptation = system.adapt(TASKS[0])
    answers = system.generate(QUERIES, adaptation)
    system.train()
    wrong: list[int] = []

    def work(number: int) -> None:
        for round_ in range(ROUNDS):
            if system.generate(QUERIES, adaptation) != answers or not same(system.adapt(TASKS[0]), adaptation):
                wrong.append(round_)

    together(work)
    assert not wrong
    assert all(module.training for module in system.modules())


def test_the_last_one_restores_the_mode_that_the_first_one_found() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout())
    first, second = evaluating(module), evaluating(module)
    with first:
        second.__enter__()
    assert not module.training and not module[0].training
    second.__exit__(None, None, None)
    assert module.training and module[0].training
    with pytest.raises(KeyError), evaluating(module):
        raise KeyError
    assert module.training


def test_parts_keep_a_mode_of_their_own() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    module[0].eval()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert module.training and not module[0].training and module[1].training


def test_exports_and_evaluations_beside_answers(tiny_base_dir: Path) -> None:
    system = build(tiny_base_dir, KINDS["lora"], fusion=False)
    adaptations = [system.adapt(task) for task in TASKS]
    answers = system.generate(QUERIES, adaptations[0])
    tasks = [
        Task(each.definition, each.demonstrations, each.name, instances=[Instance(q, ("one",)) for q in QUERIES])
        for each in TASKS
    ]
    scores = evaluate_model(system, tasks).summary
    before = fingerprint(system.main.model, system.main.tokenizer)
    merged = merge(adaptations[1], system.main).state_dict()
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(3):
            if number == 0:
                made = merge(adaptations[1], system.main).state_dict()
                if any(not torch.equal(values, made[name]) for name, values in merged.items()):
                    wrong.append("export")
            elif number == 1:
                if evaluate_model(system, tasks).summary != scores:
                    wrong.append("evaluation")
            elif system.generate(QUERIES, adaptations[0]) != answers:
                wrong.append("answers")

    together(work)
    assert not wrong
    assert fingerprint(system.main.model, system.main.tokenizer) == before


def test_scores_of_a_batch_that_mixes_tasks(system: HartModel) -> None:
    adaptation = Adaptation.stack([system.adapt(task) for task in TASKS])
    queries, choices = QUERIES[:2], [CHOICES, CHOICES[:2]]
    expected = score_choices(system.main, queries, choices, adaptation)
    wrong: list[Any] = []

    def work(_: int) -> None:
        for _ in range(ROUNDS // 2):
            found = score_choices(system.main, queries, choices, adaptation)
            if any(mine != pytest.approx(theirs, abs=1e-4) for mine, theirs in zip(found, expected, strict=True)):
                wrong.append(found)

    together(work)
    assert not wrong


def test_steps_are_of_a_thread(tiny_t5: Any) -> None:
    """A pass of another thread, between two operations of a training step, must not take its rows."""
    step_linears(tiny_t5.decoder)
    linear = tiny_t5.decoder.block[0].layer[0].SelfAttention.q
    rows = torch.randn(1, 2, linear.in_features)

    def gradient(between: Callable[[], None]) -> torch.Tensor:
        linear.weight.grad = None
        with Steps():
            between()
            linear(rows).sum().backward()
        return linear.weight.grad.clone()

    def other() -> None:
        def work() -> None:
            with Steps():
                linear(2 * rows)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    torch.testing.assert_close(gradient(other), gradient(lambda: None))


def test_models_are_loaded_side_by_side(tiny_base_dir: Path, tmp_path: Path) -> None:
    """In mixed types: while transformers loads, it changes defaults of the whole process."""
    build(tiny_base_dir, KINDS["prefix"]).save_pretrained(tmp_path / "model")
    found: list[tuple[torch.dtype, torch.dtype]] = []

    def work(number: int) -> None:
        dtype = (torch.float32, torch.bfloat16)[number % 2]
        for _ in range(2):
            loaded = HartModel.from_pretrained(tmp_path / "model", dtype=dtype)
            found.append((dtype, next(loaded.hypernetwork.parameters()).dtype))  # type: ignore[union-attr]

    together(work)
    assert len(found) == 2 * THREADS and all(wanted == got for wanted, got in found)
    assert torch.get_default_dtype() is torch.float32
