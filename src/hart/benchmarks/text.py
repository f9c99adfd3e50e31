"""The time outside the networks: a whole evaluation, and the data of training, with the bundled model and real text.

The bundled model is the hardest case: with a larger model, tokenisation, scoring and sampling take a smaller share.
"""

import functools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

from torch.utils.data import DataLoader

from hart.benchmarks import Figure, Settings, summary
from hart.benchmarks.measuring import ratios
from hart.benchmarks.training import step
from hart.data.collate import Collator
from hart.data.collections import load_tasks
from hart.data.config import DataConfig
from hart.data.input_format import InputFormat
from hart.evaluation import answers as scores
from hart.evaluation.answers import ANSWERS
from hart.evaluation.run import evaluate
from hart.evaluation.systems import hart_system
from hart.model.config import ModelConfig
from hart.model.hart_model import HartModel
from hart.training.config import RunConfig, TrainingConfig
from hart.training.train import training_examples

INSTANCES, BUNDLED_INSTANCES = 100, 20
"""Instances per test task: the benchmark's number in Super-NaturalInstructions, and that of the 28 bundled tasks."""
BATCH, QUERIES_PER_TASK = 32, 4
"""Batch size and queries per task of `configs/mini`."""


def evaluation(settings: Settings) -> Iterator[Figure]:
    """An evaluation of the test tasks, from task files in memory to scores, and the time of its parts.

    Generation is the main model's part: its encoder, the memory's projection, its decoding steps, and the work of
    `transformers` between them.
    """
    model = HartModel.from_pretrained("mini", device=settings.device)
    instances = INSTANCES if settings.data_dir else BUNDLED_INSTANCES
    tasks = load_tasks(_data(settings, max_test_instances=instances), "test")
    assert model.hypernetwork is not None
    parts: dict[str, list[tuple[Any, str]]] = {
        "tokenisation": [
            (InputFormat, "encode_input"),
            (InputFormat, "encode_task"),
            (model.main, "pad"),
            (model.main.tokenizer, "batch_decode"),
        ],
        "adapting": [(model.hypernetwork, "forward")],
        "generation": [
            (model.main.model.encoder, "forward"),
            (model.main, "keep_memory"),
            (model.main.model, "generate"),
        ],
        "scoring": [(scores, "rouge_l"), (scores, "exact_match")],
    }
    system = hart_system(model)
    evaluate(system, tasks[:2], ANSWERS)
    times: dict[str, list[float]] = {name: [] for name in (*parts, "whole")}
    for _ in range(settings.repeats):
        with ExitStack() as stack:
            clocks = {
                name: [stack.enter_context(_clocked(owner, function)) for owner, function in functions]
                for name, functions in parts.items()
            }
            start = time.perf_counter()
            evaluate(system, tasks, ANSWERS)
            times["whole"].append(time.perf_counter() - start)
        for name, measured in clocks.items():
            times[name].append(sum(map(sum, measured)))
    found = {name: [100 * share for share in ratios(times, name, "whole")] for name in parts}
    shares = {name: median(values) for name, values in found.items()}
    yield Figure(
        f"evaluation, {_collection(settings)}, bundled model: share of generation",
        "the whole evaluation",
        found["generation"],
        f"100 %; the rest is adapting {shares['adapting']:.1f} %, tokenisation {shares['tokenisation']:.1f} %, "
        f"scoring {shares['scoring']:.1f} %",
        ("≥", 85.0),
        unit="%",
        variants=summary(times),
        notes={"tasks": len(tasks), "instances": sum(len(task.instances) for task in tasks), "shares": shares},
    )


def data_pipeline(settings: Settings) -> Iterator[Figure]:
    """Share of a training step of the bundled sizes that is spent on its batch of 32, without data workers."""
    peft = [{"kind": "prefix", "length": 8}]
    model_config = ModelConfig(base="mini-base", decoder_layers=2, peft=peft)
    lengths = {"max_demonstrations_length": 384, "max_query_length": 192, "max_target_length": 48}
    data = _data(settings, **(lengths if settings.data_dir else {}))
    steps = settings.repeats + 1
    training = TrainingConfig(max_steps=steps, batch_size=BATCH, queries_per_task=QUERIES_PER_TASK)
    model = HartModel.from_config(model_config, data).to(settings.device)
    tasks = load_tasks(data, "train")
    config = RunConfig(model=model_config, data=data, training=training)
    dataset = training_examples(config, tasks, model.main.tokenizer)
    collator = Collator(model.main.tokenizer.pad_token_id, queries_per_task=QUERIES_PER_TASK)
    loader: Any = DataLoader(dataset, batch_size=BATCH, collate_fn=collator)  # type: ignore[arg-type]
    batches = iter(loader)
    train = step(model, training.alpha)
    times: dict[str, list[float]] = {"waiting": [], "step": []}
    for number in range(steps):
        start = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        train({name: batch[name].to(settings.device) for name in _INPUTS})
        done = time.perf_counter()
        if number:  # the first step is a warm-up
            times["waiting"].append(ready - start)
            times["step"].append(done - ready)
    waited = [100 * a / (a + b) for a, b in zip(times["waiting"], times["step"], strict=True)]
    yield Figure(
        f"waiting for data, {_collection(settings)}, batch {BATCH}, bundled sizes",
        "a training step",
        waited,
        "0 % with data workers (training.num_workers), which draw while a step runs",
        ("≤", 2.0),
        unit="%",
        variants=summary(times),
    )


_INPUTS = ("demo_ids", "demo_mask", "query_ids", "query_mask", "labels")


def _data(settings: Settings, **fields: Any) -> DataConfig:
    if settings.data_dir is None:
        return DataConfig(collection="procedural", **fields)
    return DataConfig(collection="sni", dir=str(settings.data_dir), **fields)


def _collection(settings: Settings) -> str:
    return "bundled tasks" if settings.data_dir is None else "S-NI"


@contextmanager
def _clocked(owner: Any, name: str) -> Iterator[list[float]]:
    """A context in which calls of `owner.name` append their seconds to the yielded list."""
    function = getattr(owner, name)
    own = name in vars(owner)
    elapsed: list[float] = []

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            elapsed.append(time.perf_counter() - start)

    setattr(owner, name, timed)
    try:
        yield elapsed
    finally:
        if own:
            setattr(owner, name, function)
        else:
            delattr(owner, name)
