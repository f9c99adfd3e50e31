"""Contract of every registered collection, from configuration to examples."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from hart.data.collections import COLLECTIONS, load_tasks
from hart.data.input_format import InputFormat
from hart.data.tasks import Task
from hart.errors import HartError
from hart.runtime.sections import FieldError
from hart.training.config import DataConfig

TASKS = [name for name, collection in COLLECTIONS.items() if not collection.is_text]
LENGTHS = {"max_demonstrations_length": 64, "max_query_length": 24, "max_target_length": 16}


@pytest.fixture
def data(request: pytest.FixtureRequest, tmp_path: Path):
    """The configuration of a collection with a small folder; a new one adds its toy folder here."""

    def build(name: str, **fields) -> DataConfig:
        collection = COLLECTIONS[name]
        if collection.is_text:
            lines = [json.dumps({"text": f"{number} " + "word " * 40}) for number in range(9)]
            (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
            folder = str(tmp_path)
        else:
            folder = str(request.getfixturevalue({"sni": "toy_data_dir", "p3": "toy_p3_dir"}.get(name, "tmp_path")))
        values = {"max_train_instances": 5, "max_test_instances": 3, **LENGTHS}
        values["dir"] = None if collection.hub_name is None else folder
        values["demonstrations"] = "fixed" if collection.has_demonstrations else "sampled"
        return DataConfig(**{"collection": name, **values, **fields})

    return build


def examples(config: DataConfig, tasks: list[Task], tokenizer: PreTrainedTokenizerFast):
    return config.source.examples(config, tasks, tokenizer, length=12, seed=3, queries_per_task=1)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_a_configuration_names_it(name: str, data) -> None:
    config = data(name)
    assert config.source is COLLECTIONS[name] and config.source.name == name
    assert InputFormat.from_config(config).input_eos == config.source.input_eos
    assert InputFormat.from_config(data(name, input_eos=False)).input_eos is False


@pytest.mark.parametrize("name", TASKS)
def test_splits_have_tasks_of_their_own_under_the_caps(name: str, data) -> None:
    splits = {split: load_tasks(data(name, validation_tasks=1), split) for split in ("train", "validation", "test")}
    names = [task.name for tasks in splits.values() for task in tasks]
    assert len(set(names)) == len(names) and all(names)
    for split, tasks in splits.items():
        assert tasks and tasks == load_tasks(data(name, validation_tasks=1), split), "the same every time"
        cap = 3 if split == "test" else 5
        assert all(1 <= len(task.instances) <= cap and task.demonstrations for task in tasks)
        reads = COLLECTIONS[name].prompt_format == "instructions"
        assert all(bool(task.definition) == reads for task in tasks)
        sizes = [COLLECTIONS[name].sampling_size(task) for task in tasks]
        assert all(0 < size <= len(task.instances) for size, task in zip(sizes, tasks, strict=True))


@pytest.mark.parametrize("name", COLLECTIONS)
def test_examples_are_within_the_limits_and_end_as_the_format_says(
    name: str, data, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = data(name)
    tasks = [] if config.segments else load_tasks(config, "train")
    made, again = examples(config, tasks, tiny_tokenizer), examples(config, tasks, tiny_tokenizer)
    assert len(made) == 12 and len(made.tasks) == max(len(tasks), 1)
    eos = tiny_tokenizer.eos_token_id
    for index in range(12):
        example = made[index]
        assert example == again[index] and example["slot"] == index
        (read,) = example["demo_ids"]
        for tokens, limit in zip((read, example["query_ids"], example["labels"]), LENGTHS.values(), strict=True):
            assert 0 < len(tokens) <= limit
        assert read[-1] == example["labels"][-1] == eos
        assert (example["query_ids"][-1] == eos) == config.source.input_eos


@pytest.mark.parametrize("name", COLLECTIONS)
def test_what_means_nothing_to_it_is_refused(name: str, data) -> None:
    collection = COLLECTIONS[name]
    if not collection.has_subsets:
        with pytest.raises(FieldError, match="data.train_subsets: "):
            data(name, train_subsets=["x"])
    if collection.hub_name is None:
        for field in ("dir", "hub_name"):
            with pytest.raises(FieldError, match=f"data.{field}: "):
                data(name, **{field: "x"})
    if not collection.has_demonstrations:
        with pytest.raises(FieldError, match="data.demonstrations: "):
            data(name, demonstrations="fixed")


@pytest.mark.parametrize("name", [name for name, collection in COLLECTIONS.items() if collection.hub_name is not None])
def test_a_missing_folder_is_one_line(name: str, data, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    config = data(name, dir=str(tmp_path / "absent"))
    with pytest.raises(HartError, match="absent") as caught:
        examples(config, [] if config.segments else load_tasks(config, "train"), tiny_tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in COLLECTIONS if name not in TASKS])
def test_text_has_no_tasks(name: str, data) -> None:
    with pytest.raises(HartError, match="has no test tasks"):
        load_tasks(data(name), "test")
