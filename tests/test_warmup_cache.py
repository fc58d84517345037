"""Warm-ups that other runs reuse."""

import os
import shutil
from pathlib import Path

import pytest

from nanonet.training import warmup as warmup_module
from nanonet.training.checkpoint import read_tensors
from nanonet.training.inputs import TrainingTables
from nanonet.training.run_folder import RunFolder, weights_sha256
from nanonet.training.warmup import cache_folder
from test_training import contents
from tiny import bert_config, make_model, make_tables, save_folder
from warmups import OBJECTIVES, UNCACHED, bert, cache, fewer, uncalibrated, warm


def other_labels():
    return TrainingTables(make_tables(labeled=3).labeled, make_tables().unlabeled)


@pytest.fixture(scope="module")
def kept_by_another(tiny_bert_folder, tmp_path_factory) -> Path:
    """The cache of a run, its entry in it. Read only."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANONET_CACHE", str(folder / "cache"))
        _, notes = warm(tiny_bert_folder, folder / "run", "warmup.steps=3")
    assert notes.starts == [("warm-up", 0, 3), ("training", 0, 1)]
    return folder / "cache"


@pytest.fixture
def entry(kept_by_another, cache) -> Path:
    """What another run has left in the cache: a warm-up of three steps."""
    shutil.copytree(kept_by_another, cache)
    (path,) = (cache / "warmup").iterdir()
    return path


@pytest.mark.parametrize(
    ("settings", "tables"),
    [
        (["seed=3"], make_tables),
        (["training.steps=2", "training.labeled_batch=3", "head.scale=2"], make_tables),
        (["cohort.student_peft=full", "cohort.teacher_peft=full"], make_tables),
        (["views.token_cutoff=0.5", "views.dropout=0.2"], make_tables),
        ([], other_labels),
    ],
)
def test_another_run_reuses_it(tmp_path, bert, cache, entry, settings, tables):
    before = contents(cache)
    found, notes = warm(bert, tmp_path / "run", "warmup.steps=3", *settings, tables=tables)
    expected = {"steps": 3, "seconds": 0.0, "cached": True, "weights_sha256": sha256_of(entry)}
    assert found == expected
    assert [what for what, *_ in notes.starts] == ["training"]
    assert f"warm-up: taken from {entry}" in notes.said
    assert (tmp_path / "run" / "warmup.safetensors").read_bytes() == entry.read_bytes()
    assert contents(cache) == before


def sha256_of(path: Path) -> str:
    return weights_sha256(read_tensors(path))


def test_the_cache_keeps_what_was_used_last(tmp_path, bert, cache, entry, monkeypatch):
    monkeypatch.setattr(warmup_module, "MOST_KEPT", 2)
    old, kept = entry.with_name("old.safetensors"), entry.with_name("kept.txt")
    old.write_bytes(b"")
    kept.write_bytes(b"")  # nothing of ours
    os.utime(entry, (1, 1))
    os.utime(old, (2, 2))
    warm(bert, tmp_path / "again", "warmup.steps=3")  # used: the newest now
    warm(bert, tmp_path / "other", "warmup.steps=2")
    names = {path.name for path in entry.parent.iterdir()}
    assert entry.name in names
    assert old.name not in names
    assert kept.name in names
    assert len(names) == 3


def test_a_run_without_a_teacher_reuses_it(tmp_path, bert, entry):
    alone = ["warmup.steps=3", "cohort.teacher=false"]
    found, _ = warm(bert, tmp_path / "run", *alone, recipe="supervised")
    assert found == {"steps": 3, "seconds": 0.0, "cached": True, "weights_sha256": sha256_of(entry)}


def test_short_texts_take_more_steps_and_say_so(tmp_path, bert):
    more, given = tmp_path / "more", tmp_path / "given"
    found, notes = warm(bert, more, "warmup.steps=2", "warmup.more_steps=true")
    assert found["steps"] == 8  # four times as many at most
    assert "8 steps of warm-up instead of 2" in "\n".join(notes.said)
    again, _ = warm(bert, given, "warmup.steps=8")
    assert (again["steps"], again["cached"]) == (8, True)  # where the number is from is all one


@pytest.mark.parametrize(
    "setting",
    [
        "warmup.steps=4",
        "warmup.seed=1",
        "warmup.peft=bitfit",
        "warmup.learning_rate=1e-3",
        "warmup.unlabeled_batch=5",
        "warmup.schedule=cosine",
        "warmup.warmup=0.5",
        "warmup.clip_norm=0",
        f"{OBJECTIVES}.representation_distillation.level=hidden",
        "cohort.layer_map=stride",
        "cohort.students=1",
        "data.max_length=12",
        "training.token_budget=64",
        "backbone.pooling=cls",
    ],
)
def test_another_warm_up_does_not_reuse_it(tmp_path, bert, entry, setting):
    settings = ["warmup.steps=3", setting]
    if setting == "cohort.students=1":
        settings.append("phases.students.objectives.mutual.weight=0")
    found, notes = warm(bert, tmp_path / "run", *settings)
    assert found["cached"] is False
    assert notes.starts[0][0] == "warm-up"
    assert found["weights_sha256"] != sha256_of(entry)
    assert len(list(entry.parent.iterdir())) == 2


@pytest.mark.usefixtures("entry")
def test_other_texts_or_another_backbone_do_not_reuse_it(tmp_path, bert):
    assert not warm(bert, tmp_path / "texts", "warmup.steps=3", tables=fewer)[0]["cached"]
    folder = save_folder(bert_config(), tmp_path / "backbone")
    same, _ = warm(folder, tmp_path / "same", "warmup.steps=3")  # the same weights elsewhere
    assert same["cached"]
    make_model(bert_config(), seed=1).save_pretrained(folder)
    assert not warm(folder, tmp_path / "other", "warmup.steps=3")[0]["cached"]


def test_without_the_cache_it_is_neither_read_nor_written(tmp_path, bert, cache):
    alone, _ = warm(bert, tmp_path / "alone", "warmup.steps=3", UNCACHED)
    assert not cache.exists()
    kept, _ = warm(bert, tmp_path / "kept", "warmup.steps=3")
    assert not kept["cached"]
    before = contents(cache)
    again, notes = warm(bert, tmp_path / "again", "warmup.steps=3", UNCACHED, "seed=5")
    assert not again["cached"]
    assert notes.starts[0][0] == "warm-up"
    assert contents(cache) == before
    # Whatever the run's seed: it has a seed of its own.
    assert len({w["weights_sha256"] for w in (alone, kept, again)}) == 1


@pytest.mark.parametrize("damage", [lambda data: data[:-8], lambda data: b"junk", lambda data: b""])
def test_a_damaged_cache_is_told_and_mended(tmp_path, bert, entry, damage):
    whole, sha256 = entry.read_bytes(), sha256_of(entry)
    entry.write_bytes(damage(whole))
    found, notes = warm(bert, tmp_path / "run", "warmup.steps=3")
    assert notes.warned[0] == f"{entry} is damaged: warming up again"
    assert (found["weights_sha256"], found["cached"]) == (sha256, False)
    assert entry.read_bytes() == whole
    assert warm(bert, tmp_path / "next", "warmup.steps=3")[0]["cached"]


def test_a_cache_that_cannot_be_written_is_told_and_the_run_goes_on(tmp_path, bert, cache):
    cache.write_text("in the way")
    found, notes = warm(bert, tmp_path / "run", "warmup.steps=3")
    assert not found["cached"]
    assert "warm-up not kept for other runs" in notes.warned[0]
    assert "\n" not in notes.warned[0]
    assert RunFolder(tmp_path / "run").finished
    assert cache.read_text() == "in the way"


def test_where_the_cache_is(monkeypatch, tmp_path, cache):
    assert cache_folder() == cache
    monkeypatch.delenv("NANONET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "nanonet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "nanonet"
