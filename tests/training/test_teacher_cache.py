"""A teacher's cache: exact contents, equal runs with and without it, and refusal of another teacher's cache."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import debug_launcher

from hart.errors import HartError
from hart.training import teacher_cache
from hart.training.config import RunConfig
from hart.training.distillation import Distillation
from hart.training.run_folder import read_metrics
from hart.training.teacher_cache import Said, TeacherCache, key_of
from hart.training.train import train

Build = Callable[..., RunConfig]
ABOUT = {"teacher": "a", "temperature": "1.0", "top_k": "2"}


def random_said(tokens: int, top_k: int | None = 2) -> Said:
    classes = 7 if top_k is None else top_k + 1
    return Said(
        torch.randn(tokens, classes).log_softmax(-1), None if top_k is None else torch.randint(9, (tokens, top_k))
    )


def same(one: Said, other: Said) -> bool:
    if (one.chosen is None) != (other.chosen is None) or not torch.equal(one.log_p, other.log_p):
        return False
    return one.chosen is None or other.chosen is None or torch.equal(one.chosen, other.chosen)


@pytest.mark.parametrize("top_k", [None, 2])
def test_what_is_kept_is_what_was_said(tmp_path: Path, top_k: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "MOST_BYTES", 100)
    about = {**ABOUT, "top_k": str(top_k)}
    kept = {key_of([row, 1], [2, 3]): random_said(1 + row % 3, top_k) for row in range(8)}
    cache = TeacherCache(tmp_path / "cache", about)
    for number, (key, said) in enumerate(kept.items()):
        cache.add(key, said)
        if number == 5:
            assert cache.is_full
            cache.flush()
            assert not cache.is_full
    assert len([*cache.folder.iterdir()]) == 1 and len(cache) == 8, "two wait"
    assert all(same(cache.get(key), said) for key, said in kept.items())
    assert len(TeacherCache(tmp_path / "cache", about)) == 6
    cache.flush()
    cache.flush()
    again = TeacherCache(tmp_path / "cache", about)
    assert len(again) == 8 and all(key in again and same(again.get(key), said) for key, said in kept.items())
    assert key_of([9], [9]) not in again
    joined = Said.joined([again.get(key) for key in kept], torch.device("cpu"))
    parts = joined.parts([len(said.log_p) for said in kept.values()])
    assert all(same(part, said) for part, said in zip(parts, kept.values(), strict=True))


def test_keys_tell_what_was_read_from_what_was_asked() -> None:
    keys = [key_of([1, 2], [3]), key_of([1], [2, 3]), key_of([12], [3]), key_of([1, 2, 3], []), key_of([1, 2], [30])]
    assert len({*keys}) == len(keys) and key_of([1, 2], [3]) == keys[0]


def test_each_teacher_has_its_own_and_what_is_damaged_is_refused(tmp_path: Path) -> None:
    """Several share a folder, also with the same examples."""
    others = [ABOUT, {**ABOUT, "teacher": "b"}, {**ABOUT, "temperature": "2.0"}]
    caches, key = [TeacherCache(tmp_path / "cache", about) for about in others], key_of([1], [2])
    said = [random_said(1) for _ in others]
    for cache, own in zip(caches, said, strict=True):
        cache.add(key, own)
        cache.flush()
    again = [TeacherCache(tmp_path / "cache", about) for about in others]
    assert all(same(cache.get(key), own) for cache, own in zip(again, said, strict=True))
    (file,) = caches[0].folder.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(HartError, match=r"distillation\.cache: .*safetensors is damaged \(.*\); remove it"):
        TeacherCache(tmp_path / "cache", ABOUT)
    with pytest.raises(HartError, match="is a file; name a folder"):
        TeacherCache(file, ABOUT)


def taught(run_config: Build, name: str, cache: Path | None, **settings: Any) -> RunConfig:
    distillation = {"teacher": "base", "temperature": 2.0, "cache": cache and str(cache)}
    settings["model"] = {"dropout": 0.0}
    return run_config(name, num_threads=1, **settings).changed(
        distillation={**distillation, **settings.pop("distillation", {})}
    )


def losses(run: Path) -> list[list[float]]:
    names = ("loss", "distillation_loss", "grad_norm")
    return [[row[name] for name in names] for row in read_metrics(run.parent / "metrics.jsonl")]


@pytest.mark.parametrize("top_k", [None, 4])
def test_runs_with_and_without_a_cache_are_equal_and_a_full_one_asks_nobody(
    run_config: Build, tmp_path: Path, top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, settings = tmp_path / "cache", {"alpha": 0.0, "queries_per_task": 2}
    configs = [
        taught(run_config, name, cache, **settings).changed(distillation={"top_k": top_k})
        for name, cache in (("plain", None), ("first", kept), ("second", kept))
    ]
    plain, first = (losses(train(config, quiet=True)) for config in configs[:2])
    for row, other in zip(plain, first, strict=True):
        assert other == pytest.approx(row, rel=1e-4)

    def asked(self: Distillation, *args: Any) -> Any:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(Distillation, "_say", asked)
    assert losses(train(configs[2], quiet=True)) == first
    other = taught(run_config, "third", kept, **settings).changed(distillation={"top_k": top_k, "temperature": 3.0})
    with pytest.raises(AssertionError, match="the teacher was asked"):
        train(other, quiet=True)


def test_a_checkpoint_keeps_what_was_said(run_config: Build, tmp_path: Path) -> None:
    """A run that stops after it has not to ask again for what was in it."""
    config = taught(run_config, "run", tmp_path / "cache", alpha=0.0, max_steps=4, save_every=2)
    train(config, quiet=True)
    assert len([*(tmp_path / "cache").glob("*/*.safetensors")]) == 2
    fields = {"folder": str(tmp_path / "moved")}
    shutil.move(tmp_path / "cache", fields["folder"])
    again = config.changed(distillation={"cache": fields["folder"]})
    assert train(again, quiet=True) == tmp_path / "run" / "final", "where it is kept says nothing of the run"


def in_this_process(config: RunConfig) -> None:
    train(config, quiet=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a forked process cannot use a GPU that its parent may use")
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_share_a_folder(run_config: Build, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    expected = losses(train(taught(run_config, "one", None, alpha=0.0), quiet=True))
    for name in ("two", "again"):
        debug_launcher(in_this_process, (taught(run_config, name, kept, alpha=0.0),), num_processes=2)
        found = losses(tmp_path / name / "final")
        assert all(row == pytest.approx(other, rel=1e-4) for row, other in zip(found, expected, strict=True))
