"""Sampling of training examples: frequencies, independence of workers, and no leak of the query."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from hart.data.collate import Collator
from hart.data.input_format import InputFormat
from hart.data.sampling import TrainingDataset
from hart.data.tasks import Instance, Task
from hart.errors import HartError


def make_task(name: str, size: int) -> Task:
    return Task(
        definition=f"Do {name}.",
        demonstrations=[(f"first {name}", "1"), (f"second {name}", "2"), ("third", "3")],
        name=name,
        instances=[Instance(f"{name} q{k}", (f"{name} a{k}", f"{name} b{k}"), f"{name}-{k}") for k in range(size)],
    )


TASKS = [make_task("north", 4), make_task("south", 12), make_task("east", 8)]
DRAWS = 2400
EARLIER = [
    (1, 827, 14754),
    (1, 828, 14754),
    (2, 639, 13953),
    (2, 640, 13953),
    (2, 639, 13951),
    (2, 640, 13951),
]


@pytest.fixture
def dataset(tiny_tokenizer: PreTrainedTokenizerFast) -> Any:
    def build(tasks: list[Task] | None = None, **options: Any) -> TrainingDataset:
        own = {name: options.pop(name) for name in list(options) if name in InputFormat.__dataclass_fields__}
        arguments: dict[str, Any] = {"length": DRAWS, "seed": 5, **options}
        return TrainingDataset(TASKS if tasks is None else tasks, tiny_tokenizer, InputFormat(**own), **arguments)

    return build


def task_and_rest(example: Any, reader: str) -> tuple[list[int], dict[str, Any]]:
    """Tokens that tell the task to who reads it, and everything else of an example."""
    key = "query_ids" if reader == "main" else "demo_ids"
    ids = example[key] if reader == "main" else example[key][0]
    return ids, {name: value for name, value in example.items() if name != key}


def text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    assert ids[-1] == tokenizer.eos_token_id
    return str(tokenizer.decode(ids[:-1]))


def test_example_holds_the_query_an_answer_to_it_and_its_task(
    dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    examples = dataset()
    assert len(examples) == DRAWS
    seen = Counter()
    for index in range(300):
        example = examples[index]
        task = TASKS[example["task_index"]]
        query = text(tiny_tokenizer, example["query_ids"])
        (instance,) = [item for item in task.instances if item.input == query]
        answer = text(tiny_tokenizer, example["labels"])
        assert answer in instance.references
        assert example["slot"] == index
        assert example["demo_ids"] == [InputFormat().encode_task(tiny_tokenizer, task)]
        seen[answer.split()[1][0]] += 1
    assert min(seen["a"], seen["b"]) > 100  # each of two references is drawn about half the time


@pytest.mark.parametrize("sampling", ["proportional", "uniform"])
def test_tasks_and_instances_are_drawn_as_often_as_they_should(dataset: Any, sampling: str) -> None:
    examples = dataset(task_sampling=sampling)
    drawn = Counter()
    for index in range(DRAWS):
        example = examples[index]
        drawn[example["task_index"], tuple(example["query_ids"])] += 1
    total = sum(len(task.instances) for task in TASKS)
    for index, task in enumerate(TASKS):
        counts = [number for (which, _), number in drawn.items() if which == index]
        share = len(task.instances) / total if sampling == "proportional" else 1 / len(TASKS)
        expected = DRAWS * share
        # Five standard deviations of the binomial; the draws are fixed by the seed in any case.
        assert abs(sum(counts) - expected) < 5 * (expected * (1 - share)) ** 0.5
        assert len(counts) == len(task.instances)
        per_instance = expected / len(task.instances)
        assert all(abs(number - per_instance) < 5 * per_instance**0.5 for number in counts)


@pytest.mark.parametrize("demonstrations", ["fixed", "sampled"])
def test_examples_are_a_function_of_seed_and_index(dataset: Any, demonstrations: str) -> None:
    options = {"demonstrations": demonstrations}
    forward = [dataset(**options)[index] for index in range(40)]
    examples = dataset(**options, length=40)
    assert [examples[index] for index in reversed(range(40))] == forward[::-1]
    assert [dataset(**options, seed=6)[index] for index in range(40)] != forward


@pytest.mark.parametrize("demonstrations", ["fixed", "sampled"])
def test_batches_do_not_depend_on_the_number_of_workers(dataset: Any, demonstrations: str) -> None:
    examples = dataset(demonstrations=demonstrations, length=24)

    def batches(workers: int) -> list[dict[str, Any]]:
        loader = DataLoader(examples, batch_size=4, num_workers=workers, collate_fn=Collator(0))
        return list(loader)

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert alone.keys() == shared.keys()
        assert all(alone[key].equal(shared[key]) for key in alone)


def test_groups_are_sampled_together(dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    examples = dataset(TASKS[1:], demonstrations="sampled", num_demonstrations=2, demonstration_groups=3)
    for index in range(20):
        example = examples[index]
        shown = [text(tiny_tokenizer, group).split("Input: ")[1:] for group in example["demo_ids"]]
        assert [len(group) for group in shown] == [2, 2, 2]
        inputs = {each.split("\n")[0].rstrip(".") for group in shown for each in group}
        assert len(inputs) == 6 and text(tiny_tokenizer, example["query_ids"]) not in inputs


@pytest.mark.parametrize("space", ["", " "])  # a space that no model reads
def test_sampled_demonstrations_are_other_instances_of_the_task(
    space: str, dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    # One input occurs twice, with different answers: neither may be shown for the other.
    twice = Instance(TASKS[0].instances[0].input + space, ("other",), "again")
    tasks = [replace(TASKS[0], instances=(*TASKS[0].instances, twice)), TASKS[1]]
    examples = dataset(tasks, demonstrations="sampled", num_demonstrations=3)
    shown_sets = set()
    for index in range(200):
        example = examples[index]
        task = tasks[example["task_index"]]
        query = text(tiny_tokenizer, example["query_ids"])
        demos = text(tiny_tokenizer, example["demo_ids"][0])
        assert demos.startswith(f"Definition: {task.definition}")
        blocks = demos.split(" Positive Example ")[1:]
        assert len(blocks) == 3
        shown = []
        for block in blocks:
            _, question, answer, *_ = block.split("\n")
            answers = [
                reference
                for item in task.instances
                if question == f"Input: {item.input.strip()}."
                for reference in item.references
            ]
            assert answer in [f" Output: {reference}." for reference in answers]
            assert question != f"Input: {query}."
            shown.append((question, answer))
        assert len(set(shown)) == 3  # three instances, none twice
        shown_sets.add(tuple(shown))
    assert len(shown_sets) > 100


@pytest.mark.parametrize("reader", ["hypernetwork", "main"])
@pytest.mark.parametrize("demonstrations", ["fixed", "sampled"])
def test_tasks_are_told_in_part_as_often_as_they_should(
    dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast, demonstrations: str, reader: str
) -> None:
    """Groups as wholes; nothing else is drawn in another way, and a teacher reads all."""
    options = {"demonstrations": demonstrations, "demonstrations_to": reader, "queries_per_task": 2}
    teacher = InputFormat(demonstrations_to="main")
    whole = dataset(**options, teacher=teacher)
    told = dataset(**options, teacher=teacher, omit_definition=0.3, omit_demonstrations=0.2)
    counts: Counter[str] = Counter()
    for index in range(0, DRAWS, 2):
        kinds = []
        for each in (index, index + 1):
            (ids, rest), (all_of_it, rest_of_whole) = (task_and_rest(these[each], reader) for these in (told, whole))
            has_definition = "Definition:" in text(tiny_tokenizer, ids)
            has_demonstrations = "Positive Example" in text(tiny_tokenizer, ids)
            kinds.append((has_definition, has_demonstrations))
            if all(kinds[-1]):
                assert ids == all_of_it
            assert rest == rest_of_whole
        assert kinds[0] == kinds[1] and any(kinds[0])
        counts[str(kinds[0])] += 1
    assert counts["(False, True)"] == pytest.approx(0.3 * DRAWS / 2, abs=60)
    assert counts["(True, False)"] == pytest.approx(0.2 * DRAWS / 2, abs=60)


@pytest.mark.parametrize("reader", ["hypernetwork", "main"])
@pytest.mark.parametrize("demonstrations", ["fixed", "sampled"])
def test_number_of_demonstrations_is_drawn_between_the_fewest_and_all(
    dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast, demonstrations: str, reader: str
) -> None:
    """The first ones of those that are shown otherwise; a teacher reads all of them, the queries stay as they are."""
    options = {"demonstrations": demonstrations, "demonstrations_to": reader, "queries_per_task": 2}
    options |= {"num_demonstrations": 3, "teacher": InputFormat(num_demonstrations=3, demonstrations_to="main")}
    whole, fewer = dataset(**options), dataset(**options, fewest_demonstrations=2)
    counts: Counter[int] = Counter()
    for index in range(0, DRAWS, 2):
        found = []
        for each in (index, index + 1):
            (ids, rest), (all_of_it, rest_of_whole) = (task_and_rest(these[each], reader) for these in (fewer, whole))
            told, complete = (text(tiny_tokenizer, these).split("Positive Example") for these in (ids, all_of_it))
            if reader == "hypernetwork":
                assert [part.strip() for part in told] == [part.strip() for part in complete[: len(told)]]
            found.append(len(told) - 1)
            assert rest == rest_of_whole
        assert found[0] == found[1]
        if len(complete) == 4:  # of a task that has three to show
            counts[found[0]] += 1
        else:
            assert found == [2, 2]
    assert set(counts) == {2, 3}
    assert counts[2] / counts.total() == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("reader", ["hypernetwork", "main"])
@pytest.mark.parametrize("demonstrations", ["fixed", "sampled"])
def test_first_steps_tell_the_definition_alone(
    dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast, demonstrations: str, reader: str
) -> None:
    """A share of all steps; then the whole tasks of the same draws, which a teacher reads from the first step on."""
    options = {"demonstrations": demonstrations, "demonstrations_to": reader, "queries_per_task": 2, "length": 80}
    options["teacher"] = InputFormat(demonstrations_to="main")
    whole, later = dataset(**options), dataset(**options, definition_first=0.75)
    for index in range(80):
        (ids, rest), (all_of_it, rest_of_whole) = (task_and_rest(these[index], reader) for these in (later, whole))
        assert rest == rest_of_whole
        if index >= 60:
            assert ids == all_of_it
        else:
            told = text(tiny_tokenizer, ids)
            assert "Definition:" in told and "Positive Example" not in told


def test_number_of_groups_follows_the_number_of_demonstrations(dataset: Any) -> None:
    examples = dataset(demonstrations="sampled", demonstration_groups=3, num_demonstrations=1, fewest_demonstrations=1)
    assert {len(examples[index]["demo_ids"]) for index in range(100)} == {1, 2, 3}


def test_fewest_demonstrations_leave_tasks_without_any_as_often_as_they_should(
    dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    options = {"omit_demonstrations": 0.2, "fewest_demonstrations": 1}
    examples = dataset(demonstrations="sampled", **options)
    texts = [text(tiny_tokenizer, examples[index]["demo_ids"][0]) for index in range(DRAWS)]
    counts = Counter(each.count("Positive Example") for each in texts)
    assert counts[0] == pytest.approx(0.2 * DRAWS, abs=90)
    assert counts[1] == pytest.approx(0.4 * DRAWS, abs=110)


def test_main_model_may_read_the_demonstrations(dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    plain, main = dataset(), dataset(demonstrations_to="main", explanations=True)
    for index in range(20):
        query = text(tiny_tokenizer, plain[index]["query_ids"])
        example = main[index]
        task = TASKS[example["task_index"]]
        wanted = InputFormat(explanations=True).encode_in_context(tiny_tokenizer, task, query)
        assert example["query_ids"] == wanted
        assert example["labels"] == plain[index]["labels"]
        assert "demo_ids" not in example


def test_demonstrations_may_go_nowhere(dataset: Any) -> None:
    plain, nowhere = dataset(), dataset(demonstrations_to="nowhere", demonstrations="sampled")
    for index in range(20):
        example = dict(plain[index])
        del example["demo_ids"]
        assert nowhere[index] == example


def test_index_outside_the_data_set_is_refused(dataset: Any) -> None:
    for index in (-1, DRAWS):
        with pytest.raises(IndexError):
            dataset()[index]


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ([], {}, "there are no tasks to train on"),
        ([replace(TASKS[0], instances=())], {}, "task north: has no Instances"),
        (
            [TASKS[1], replace(TASKS[0], instances=(Instance(" \n", ("a",), "north-9"),))],
            {},
            "task north: all of its 1 Instances have an empty input",
        ),
        ([replace(TASKS[0], definition=" ")], {}, "task north: the definition is empty"),
        ([replace(TASKS[0], demonstrations=())], {}, "task north: has no demonstrations, and data.num_demonstrations"),
        (
            TASKS,
            {"demonstrations": "sampled", "queries_per_task": 4},
            "task north: has 4 different inputs, too few to sample demonstrations",
        ),
        (TASKS, {"demonstrations": "random"}, "demonstrations: 'random' is not one of fixed"),
        (TASKS, {"task_sampling": "even"}, "task_sampling: 'even' is not one of"),
        (TASKS, {"demonstrations_to": "both"}, "demonstrations_to: 'both' is not one of"),
        (TASKS, {"num_demonstrations": -1}, "num_demonstrations: must be at least 0"),
        (TASKS, {"seed": -1}, "seed: must be at least 0"),
    ],
)
def test_what_would_fail_during_a_run_is_refused_before_it(
    dataset: Any, tasks: list[Task], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(HartError, match=message):
        dataset(tasks, **options)


def test_instances_with_an_empty_input_are_left_out_and_counted(
    dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """Super-NaturalInstructions' task1195 has one: it must not stop a training."""
    blank = Instance(" \n", ("a",))
    north = replace(TASKS[0], instances=(blank, *TASKS[0].instances[:2], blank, *TASKS[0].instances[2:]))
    south = replace(TASKS[1], instances=(*TASKS[1].instances, blank))
    plain = dataset(length=200)
    assert not caplog.messages
    examples = dataset([north, south, TASKS[2]], length=200)
    assert caplog.messages == ["task north: left out 2 of 6 instances, whose input is empty; the same for task south"]
    assert [examples[i] for i in range(200)] == [plain[i] for i in range(200)]
    weighed = dataset([north, south, TASKS[2]], length=200, sizes=[6, 13, 8], demonstrations="sampled")
    assert all(len(weighed[i]["query_ids"]) > 1 for i in range(200))


@pytest.mark.parametrize("to", ["hypernetwork", "main"])
def test_demonstrations_of_a_group_are_encoded_once(
    to: str, dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, encode = [], InputFormat.encode_task
    monkeypatch.setattr(InputFormat, "encode_task", lambda *a, **k: asked.append(a[2]) or encode(*a, **k))
    options = {"demonstrations": "sampled", "queries_per_task": 3, "length": 30, "demonstrations_to": to}
    examples = dataset(**options)
    in_order = [examples[i] for i in range(30)]
    assert len(asked) == (10 if to == "hypernetwork" else 0)
    # Asked for in any order, by a new data set each, they are the same.
    shuffled = sorted(range(30), key=lambda i: (i * 7) % 30)
    assert [dataset(**options)[i] for i in shuffled] == [in_order[i] for i in shuffled]
    for first in range(0, 30, 3):
        assert len({tuple(each.get("demo_ids", [()])[0]) for each in in_order[first : first + 3]}) == 1


def long_task(name: str, *, queries: int = 0, targets: int = 0, demonstrations: int = 1) -> Task:
    instances = [
        Instance("one " * (60 if k < queries else 2) + str(k), ("two " * (60 if k < targets else 2),))
        for k in range(10)
    ]
    return Task("Do it.", [("three", "four"), ("five " * 80, "x")][:demonstrations], name=name, instances=instances)


def test_what_is_cut_is_told_once_and_counted(dataset: Any, caplog: pytest.LogCaptureFixture) -> None:
    lengths = {"max_demonstrations_length": 100, "max_query_length": 50, "max_target_length": 40}
    tasks = [long_task("a", queries=3), long_task("b", targets=2, queries=5, demonstrations=2), long_task("c")]
    tasks += [long_task(f"more {number}", demonstrations=2) for number in range(20)]
    examples = dataset(tasks, **lengths)
    expected = [
        "task b: left out demonstration 2 of 2 to stay within 100 tokens; the same for task more 0, task more 1 "
        "and 18 more",
        "queries: 8 of 230 are longer than 50 tokens and cut from the end, most of them in task b, a",
        "targets: 2 of 230 are longer than 40 tokens and cut from the end, most of them in task b",
    ]
    assert caplog.messages == expected
    for index in range(300):
        assert len(examples[index]["query_ids"]) <= 50 and len(examples[index]["labels"]) <= 40
    assert caplog.messages == expected, "nothing more during the run"
    caplog.clear()
    many = replace(tasks[0], instances=[each for each in tasks[0].instances for _ in range(50)])
    dataset([many], **lengths)
    assert caplog.messages == [
        "queries: 30 of 100 checked are longer than 50 tokens and cut from the end, most of them in task a"
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_cut_during_a_run_is_told_of_the_first(workers: int, dataset: Any, capfd: Any, caplog: Any) -> None:
    lengths = {"max_demonstrations_length": 30, "max_query_length": 50, "max_target_length": 40}
    form = {**PROMPTS, "num_demonstrations": 3}
    rows = OnDisk([f"{i} {'one ' * 60}" for i in range(100)])
    examples = dataset([Task("", [("x", "y")], name="disk", instances=rows)], **lengths, length=40, **form)
    assert not caplog.messages
    handler = logging.StreamHandler()  # of the workers, too
    logging.getLogger("hart.data.sampling").addHandler(handler)
    try:
        loader = DataLoader(examples, batch_size=4, num_workers=workers, collate_fn=Collator(0))
        assert len(list(loader)) == 10
    finally:
        logging.getLogger("hart.data.sampling").removeHandler(handler)
    assert capfd.readouterr().err.splitlines() == [
        "task disk: cut the input and target of the only demonstration that it shows to stay within 30 tokens; "
        "the same may hold for others",
        "task disk: cut the end of the query to stay within 50 tokens; the same may hold for others",
        "task disk: cut the end of the target to stay within 40 tokens; the same may hold for others",
    ]


class OnDisk(Sequence[Instance]):
    """Instances that are made when they are asked for, as rows on the disk are."""

    def __init__(self, inputs: list[str] | range) -> None:
        self.inputs, self.read = inputs, 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, at: Any) -> Any:
        self.read += 1
        return Instance(f"q{self.inputs[at]}", (f"a{self.inputs[at]}",))


def prompts_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    """The texts of "prompts", which end-of-sequence tokens separate."""
    texts: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.eos_token_id:
            texts.append([])
        else:
            texts[-1].append(token)
    assert texts[-1] == []
    return [str(tokenizer.decode(part)) for part in texts[:-1]]


PROMPTS: dict[str, Any] = {
    "demonstrations": "sampled",
    "num_demonstrations": 16,
    "prompt_format": "prompts",
    "input_eos": False,
}


@pytest.mark.parametrize("queries_per_task", [1, 4])
def test_rows_on_the_disk_are_read_one_by_one(
    queries_per_task: int, dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = OnDisk(range(5_000_000))
    examples = dataset([Task("", [("x", "y")], instances=rows)], queries_per_task=queries_per_task, **PROMPTS)
    assert rows.read == 0
    seen = set()
    for index in range(40):
        example = examples[index]
        query = tiny_tokenizer.decode(example["query_ids"])
        shown = prompts_of(tiny_tokenizer, example["demo_ids"][0])
        assert len(shown) == 16 and len(set(shown)) == 16
        assert all(text.count("q") == 1 and text.split("a")[0] != query for text in shown)
        seen.add(query)
    assert len(seen) == 40 and rows.read < 40 * (17 + 2 * queries_per_task)


def test_equal_inputs_on_the_disk_are_not_shown(dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = OnDisk([str(i % 3) for i in range(30)])
    examples = dataset([Task("", [("x", "y")], instances=rows)], **PROMPTS)
    for index in range(50):
        query = tiny_tokenizer.decode(examples[index]["query_ids"])
        shown = prompts_of(tiny_tokenizer, examples[index]["demo_ids"][0])
        assert shown and not any(text.startswith(query) for text in shown)
    same = dataset([Task("", [("x", "y")], name="same", instances=OnDisk(["0"] * 30))], **PROMPTS)
    with pytest.raises(HartError, match="task same: all other rows repeat the query"):
        same[0]


def test_fewer_demonstrations_than_asked_for_are_shown_and_said(
    dataset: Any, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    examples = dataset(TASKS[:1], **PROMPTS)
    assert caplog.messages == ["task north: has 4 different inputs, so it shows fewer than 16 demonstrations"]
    assert {len(prompts_of(tiny_tokenizer, examples[i]["demo_ids"][0])) for i in range(20)} == {3}
    assert len(caplog.messages) == 1


def test_sizes_weigh_tasks_without_hiding_their_instances(dataset: Any) -> None:
    tasks = [make_task("large", 200), make_task("small", 10)]
    examples = dataset(tasks, sizes=[10, 10], length=DRAWS)
    drawn = [examples[i] for i in range(DRAWS)]
    counts = Counter(example["task_index"] for example in drawn)
    assert abs(counts[0] - DRAWS / 2) < 4 * (DRAWS / 4) ** 0.5
    inputs = Counter(tuple(example["query_ids"]) for example in drawn if example["task_index"] == 0)
    assert len(inputs) > 190


def test_draws_are_those_of_earlier_versions(dataset: Any) -> None:
    """Runs are resumed and repeated across versions: example i of (seed, i) is fixed."""
    examples = dataset(demonstrations="sampled", num_demonstrations=2, queries_per_task=2)
    found = [
        (examples[i]["task_index"], sum(examples[i]["query_ids"]), sum(examples[i]["demo_ids"][0])) for i in range(6)
    ]
    assert found == EARLIER
