"""P3 from a folder and from the hub: choice of subsets, rows and demonstrations, and refused input."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from hart.data.p3 import instances as p3_instances
from hart.data.p3.subsets import load_p3
from hart.errors import HartError


def names(tasks) -> list[str]:
    return [task.name for task in tasks]


def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "p3"))


def test_training_reads_the_mixture_and_the_test_what_is_held_out(toy_p3_dir: Path):
    training = load_p3(toy_p3_dir, "train")
    assert names(training) == [
        "ag_news_classify",
        "ag_news_recommend",
        "imdb_Reviewer_Enjoyment",
        "xsum_DOC_tldr",
    ]
    assert [task.categories for task in training] == [("ag_news",), ("ag_news",), ("imdb",), ("xsum",)]
    assert [task.multiple_choice for task in training] == [True, True, True, False]
    assert {len(task.instances) for task in training} == {12} and training[0].definition == ""
    testing = load_p3(toy_p3_dir, "test")
    assert names(testing) == [
        "super_glue_cb_can_we_infer",
        "super_glue_copa_best_option",
        "super_glue_copa_cause_effect",
    ]
    assert testing[1].instances[0].choices == ("the cat", "the mat")
    assert testing[1].instances[0].references == ("the cat",) and len(testing[1].instances) == 6


@pytest.mark.parametrize("split", ["train", "test"])
def test_demonstrations_are_train_rows_fixed_by_the_seed(split: str, toy_p3_dir: Path):
    first, again, other = (load_p3(toy_p3_dir, split, num_demonstrations=5, seed=seed) for seed in (1, 1, 2))
    assert [t.demonstrations for t in first] == [t.demonstrations for t in again]
    assert [t.demonstrations for t in first] != [t.demonstrations for t in other]
    for task in first:
        rows = [json.loads(line) for line in (toy_p3_dir / task.name / "train.jsonl").read_text().splitlines()]
        pairs = {(row["inputs_pretokenized"], row["targets_pretokenized"]) for row in rows}
        assert len({demo.input for demo in task.demonstrations}) == 5
        assert {(demo.input, demo.output) for demo in task.demonstrations} <= pairs


def test_a_test_query_is_never_a_demonstration(toy_p3_dir: Path, tmp_path: Path):
    folder = copy(toy_p3_dir, tmp_path)
    subset = folder / "super_glue_cb_can_we_infer"
    rows = (subset / "validation.jsonl").read_text()
    with (subset / "train.jsonl").open("a") as file:
        file.write(rows)
    (task,) = load_p3(folder, "test", subsets=["super_glue_cb_*"], num_demonstrations=100)
    assert len(task.demonstrations) == 12
    assert not {demo.input for demo in task.demonstrations} & {row.input for row in task.instances}
    # White space around a text is nothing that a model reads.
    padded = [json.loads(row) for row in rows.splitlines()]
    with (subset / "train.jsonl").open("w") as file:
        for row in padded:
            file.write(json.dumps({**row, "inputs_pretokenized": row["inputs_pretokenized"] + " "}) + "\n")
    with pytest.raises(HartError, match="all train rows have inputs of test rows"):
        load_p3(folder, "test", subsets=["super_glue_cb_*"])
    (subset / "train.jsonl").write_text(rows)
    with pytest.raises(HartError, match="cb_can_we_infer: all train rows have inputs of test rows"):
        load_p3(folder, "test")


def test_fewer_demonstrations_than_asked_for_are_used_and_said(toy_p3_dir: Path, caplog: pytest.LogCaptureFixture):
    (task,) = load_p3(toy_p3_dir, "test", subsets=["super_glue_cb_can_we_infer"])
    assert len(task.demonstrations) == 12
    assert caplog.messages == ["task super_glue_cb_can_we_infer: has 12 of 16 demonstrations"]
    caplog.clear()
    assert len(load_p3(toy_p3_dir, "test")) == 3
    others = "task super_glue_copa_best_option, task super_glue_copa_cause_effect"
    said = f"task super_glue_cb_can_we_infer: has 12 of 16 demonstrations; the same for {others}"
    assert caplog.messages == [said]


def test_rows_on_the_disk_make_the_same_tasks(toy_p3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    in_memory = {split: load_p3(toy_p3_dir, split, num_demonstrations=4) for split in ("train", "test")}
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(p3_instances, "IN_MEMORY_BYTES", 0)
    for split, tasks in in_memory.items():
        for one, other in zip(tasks, load_p3(toy_p3_dir, split, num_demonstrations=4), strict=True):
            assert not isinstance(other.instances, tuple)
            assert (one.name, one.demonstrations) == (other.name, other.demonstrations)
            assert list(one.instances) == list(other.instances)


def test_validation_sets_whole_data_sets_with_choices_aside(toy_p3_dir: Path):
    everything = set(names(load_p3(toy_p3_dir, "train")))
    seen = set()
    for seed in range(6):
        aside = load_p3(toy_p3_dir, "validation", validation_tasks=1, seed=seed)
        left = load_p3(toy_p3_dir, "train", validation_tasks=1, seed=seed)
        assert set(names(aside)) | set(names(left)) == everything
        assert len({task.categories for task in aside}) == 1 and len(aside[0].instances) == 6
        assert not {t.categories for t in aside} & {t.categories for t in left}
        seen |= {task.categories[0] for task in aside}
    assert seen == {"ag_news", "imdb"}  # xsum has no choices


def test_a_template_without_choices_is_neither_trained_nor_validated_on(
    toy_p3_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = copy(toy_p3_dir, tmp_path)
    shutil.copytree(folder / "xsum_DOC_tldr", folder / "imdb_Generate_a_review")
    subsets = ["imdb_*", "xsum_DOC_tldr"]
    aside = load_p3(folder, "validation", validation_tasks=1, subsets=subsets)
    assert names(aside) == ["imdb_Reviewer_Enjoyment"]
    assert "subset imdb_Generate_a_review: is used neither for training nor for validation" in caplog.text
    assert names(load_p3(folder, "train", validation_tasks=1, subsets=subsets)) == ["xsum_DOC_tldr"]


def test_names_of_other_copies_and_scoring_copies(toy_p3_dir: Path, tmp_path: Path):
    folder = copy(toy_p3_dir, tmp_path)
    (folder / "super_glue_cb_can_we_infer").rename(folder / "super_glue_cb_can_we_infer_")
    shutil.copytree(folder / "super_glue_copa_best_option", folder / "super_glue_copa_best_option_score_eval")
    assert names(load_p3(folder, "test")) == names(load_p3(toy_p3_dir, "test"))


def test_max_instances_keeps_the_first_rows(toy_p3_dir: Path):
    assert {len(task.instances) for task in load_p3(toy_p3_dir, "test", max_instances=2)} == {2}


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("dev", {}, "split: 'dev' is not one of"),
        ("train", {"subsets": ["ag_news_nothing"]}, "data.train_subsets: ag_news_nothing matches no subset"),
        (
            "train",
            {"subsets": ["super_glue_*"]},
            "data.train_subsets: super_glue_cb_can_we_infer belongs to a held-out",
        ),
        ("train", {"subsets": []}, "data.train_subsets: is empty"),
        ("test", {"subsets": ["x_*"]}, "data.test_subsets: x_. matches no subset"),
        ("validation", {}, "validation_tasks: is 0"),
        ("train", {"validation_tasks": 3}, "validation_tasks: 3 of the 2 training data sets"),
        ("train", {"validation_tasks": 1, "subsets": ["imdb_*"]}, "at least one data set must be left"),
    ],
)
def test_what_cannot_be_loaded_is_refused(split: str, options: dict, message: str, toy_p3_dir: Path):
    with pytest.raises(HartError, match=message):
        load_p3(toy_p3_dir, split, **options)


def test_a_folder_of_something_else_is_refused(toy_p3_dir: Path, tmp_path: Path):
    with pytest.raises(HartError, match="absent: cannot be read as a folder of P3 subsets"):
        load_p3(tmp_path / "absent", "train")
    with pytest.raises(HartError, match="has no subsets"):
        load_p3(tmp_path, "train")
    shutil.copytree(toy_p3_dir / "imdb_Reviewer_Enjoyment", tmp_path / "imdb_Reviewer_Enjoyment")
    with pytest.raises(HartError, match="has no subset of the held-out tasks; name the subsets in data.test_subsets"):
        load_p3(tmp_path, "test")
    (tmp_path / "imdb_Reviewer_Enjoyment").rename(tmp_path / "my_own")
    with pytest.raises(HartError, match="has no subset of T0's training mixture"):
        load_p3(tmp_path, "train")
    assert names(load_p3(tmp_path, "train", subsets=["my_own"])) == ["my_own"]


def test_one_row_cannot_demonstrate_itself(toy_p3_dir: Path, tmp_path: Path):
    folder = copy(toy_p3_dir, tmp_path)
    path = folder / "imdb_Reviewer_Enjoyment" / "train.jsonl"
    path.write_text(path.read_text().splitlines()[0])
    with pytest.raises(HartError, match="imdb_Reviewer_Enjoyment: train has one row"):
        load_p3(folder, "train")


def test_hub_loads_the_parquet_branch_by_name(toy_p3_dir: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def list_repo_tree(self, name, *, repo_type, revision):
        asked.update(name=name, type=repo_type, revision=revision)
        folders = [path.name for path in toy_p3_dir.iterdir()]
        return [huggingface_hub.hf_api.RepoFolder(path=f, oid="0", type="directory") for f in folders]

    def snapshot_download(name, *, repo_type, revision, allow_patterns):
        asked["patterns"] = allow_patterns
        return str(toy_p3_dir)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", list_repo_tree)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert names(load_p3(None, "test")) == names(load_p3(toy_p3_dir, "test"))
    assert (asked["name"], asked["type"], asked["revision"]) == ("bigscience/P3", "dataset", "refs/convert/parquet")
    assert "super_glue_copa_best_option/validation/*" in asked["patterns"]
    assert not any(pattern.startswith("imdb") for pattern in asked["patterns"])


def test_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("offline\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", fail)
    with pytest.raises(HartError, match=r"bigscience/P3: cannot be loaded from the hub \(offline\); give a folder"):
        load_p3(None, "train")
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", lambda *_, **__: [SimpleNamespace(path="README.md")])
    with pytest.raises(HartError, match="bigscience/P3: has no subset of T0's training mixture"):
        load_p3(None, "train")


def test_real_subsets(shared_data: Path):
    testing = load_p3(shared_data / "p3", "test")
    assert len(testing) == 15 * 3 + 3 + 15 + 12 + 10 + 10 + 10 + 5
    assert all(task.multiple_choice for task in testing)
    patterns = ["super_glue_boolq_*", "glue_sst2_*", "story_cloze_2016_*"]
    training = load_p3(shared_data / "p3", "train", subsets=patterns)
    assert len(training) == 20
    with pytest.raises(HartError, match="no subset of T0's training mixture"):
        load_p3(shared_data / "p3", "train")


@pytest.fixture
def hub_cache(toy_p3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with the toy subsets as its parquet branch has them; the snapshot's folder."""
    import pyarrow
    import pyarrow.parquet

    repository = tmp_path / "hub" / "datasets--bigscience--P3"
    snapshot = repository / "snapshots" / ("b" * 40)
    reference = repository / "refs" / "refs" / "convert" / "parquet"
    reference.parent.mkdir(parents=True)
    reference.write_text("b" * 40)
    (repository / "blobs").mkdir()
    for path in toy_p3_dir.glob("*/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        to = snapshot / path.parent.name / path.stem / "0000.parquet"
        to.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), to)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_a_cache_of_the_hub_needs_no_network(
    hub_cache: Path, toy_p3_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    for split in ("train", "test"):
        caplog.clear()
        assert names(load_p3(None, split)) == names(load_p3(toy_p3_dir, split))
        assert caplog.messages[0] == (
            "bigscience/P3: the hub is offline or cannot be reached; only its local cache is used"
        )
        assert len(caplog.messages) == (1 if split == "train" else 3)  # both say that there are fewer demonstrations
    # A download that was broken off.
    (hub_cache.parents[1] / "blobs" / "abc.incomplete").touch()
    caplog.clear()
    load_p3(None, "test")
    assert caplog.messages[0].endswith("is used, where 1 downloads are unfinished")
    shutil.rmtree(hub_cache / "super_glue_cb_can_we_infer" / "validation")
    with pytest.raises(HartError, match="super_glue_cb_can_we_infer: has no validation rows"):
        load_p3(None, "test")


def test_the_hub_says_which_files_of_a_cache_are_missing(hub_cache: Path):
    """Its client keeps the list of a snapshot's files since version 1.0 or so; without the list it cannot know."""
    client = pytest.importorskip("huggingface_hub._tree_cache", reason="the hub's client is of an older version")
    listed = {str(path.relative_to(hub_cache)): None for path in hub_cache.rglob("*.parquet")}
    listed["imdb_Reviewer_Enjoyment/train/0001.parquet"] = None
    entries = {
        name: client.TreeCacheEntry(size=1, blob_id="0", lfs_sha256=None, lfs_size=None, xet_hash=None)
        for name in listed
    }
    client.write_tree_cache(str(hub_cache.parents[1]), "b" * 40, entries)
    assert len(load_p3(None, "test")) == 3
    with pytest.raises(
        HartError, match=r"bigscience/P3: cannot be loaded from the hub \(The cached snapshot.*incomplete"
    ):
        load_p3(None, "train")
