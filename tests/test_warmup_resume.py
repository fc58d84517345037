"""Warm-ups that are interrupted, and runs that start from warmed-up ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nanonet.core.errors import InterruptedRunError, RunError
from nanonet.data.readers import table_from_lists
from nanonet.export import export, load_cohort
from nanonet.runtime.predictor import Predictor
from nanonet.scoring import evaluate_run
from nanonet.training.checkpoint import list_checkpoints
from nanonet.training.evaluation import predict_logits
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from test_engine import FP32
from test_training import contents, losses
from tiny import make_settings, make_tables, make_texts
from warmups import (
    OBJECTIVES,
    REST,
    SHORT,
    UNCACHED,
    Watch,
    bert,
    cache,
    clockless,
    encode,
    fewer,
    interrupt,
    outcome,
    resume,
    trained,
    uncalibrated,
)

WHOLE = [
    *("warmup.steps=5", "training.steps=5", "training.checkpoint_every=2", "training.log_every=1"),
    UNCACHED,
]


def die(what: str, step: int) -> Watch:
    """A display that ends the process, as far as the run can tell."""

    def kill(now_what, now):
        if (now_what, now) == (what, step):
            raise MemoryError

    return Watch(kill)


@pytest.fixture(scope="module")
def whole(tiny_bert_folder, tmp_path_factory) -> Path:
    """A run that was never stopped. Read only."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(make_settings(tiny_bert_folder, *WHOLE), make_tables, out)
    return out


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_warm_up_that_was_interrupted_continues_to_the_bit(tmp_path, bert, whole, step):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(InterruptedRunError, match=f"step {step} of 5; continue with --resume"):
        train(config, make_tables, out, display=interrupt("warm-up", step))
    assert not (out / "warmup.safetensors").exists()
    kept = [path.name for path in list_checkpoints(out / "warmup" / "checkpoints")]
    assert kept[-1] == f"step-{step:06d}"
    rows = losses(out / "warmup")
    assert [(row["kind"], row["step"]) for row in rows] == [("warmup", i + 1) for i in range(step)]
    notes = resume(config, out)
    assert notes.starts == [("warm-up", step, 5), ("training", 0, 5)]
    assert outcome(out) == outcome(whole)
    assert not (out / "warmup").exists()


def test_a_warm_up_that_was_killed_repeats_the_steps_since_its_checkpoint(tmp_path, bert, whole):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(MemoryError):
        train(config, make_tables, out, display=die("warm-up", 4))  # before its checkpoint
    assert resume(config, out).starts[0] == ("warm-up", 2, 5)
    assert outcome(out) == outcome(whole)


def test_a_warm_up_that_was_killed_at_once_starts_over(tmp_path, bert, whole):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(MemoryError):
        train(config, make_tables, out, display=die("warm-up", 1))
    assert resume(config, out).starts[0] == ("warm-up", 0, 5)
    assert outcome(out) == outcome(whole)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_interrupted_after_its_warm_up_does_not_repeat_it(tmp_path, bert, whole, step):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(InterruptedRunError, match=f"stopped after step {step} of 5"):
        train(config, make_tables, out, display=interrupt("training", step))
    assert resume(config, out).starts == [("training", step, 5)]
    assert outcome(out) == outcome(whole)


def test_a_run_killed_before_its_first_checkpoint_keeps_its_warm_up(tmp_path, bert, whole):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(MemoryError):
        train(config, make_tables, out, display=die("training", 1))
    assert list_checkpoints(out / "checkpoints") == []
    assert resume(config, out).starts == [("training", 0, 5)]
    assert outcome(out) == outcome(whole)


def test_a_run_from_the_cache_continues_too(tmp_path, bert):
    config = make_settings(bert, *WHOLE[:-1])
    expected = train(config, make_tables, tmp_path / "first")
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(config, make_tables, out, display=interrupt("training", 3))
    resume(config, out)
    summary = RunFolder(out).read_summary()
    assert summary["warmup"]["cached"]
    assert clockless(summary) == clockless(expected)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("warmup.steps=6", "warmup.steps=5, not 6"),
        ("warmup.peft=lora", "warmup.peft='layers', not 'lora'"),
        (f"{OBJECTIVES}.representation_distillation.level=hidden", "'pooled', not 'hidden'"),
    ],
)
@pytest.mark.parametrize("what", ["warm-up", "training"])
def test_other_settings_are_refused_by_key(tmp_path, bert, what, setting, expected):
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(make_settings(bert, *WHOLE), make_tables, out, display=interrupt(what, 2))
    before = contents(tmp_path)
    with pytest.raises(RunError, match=expected):
        train(make_settings(bert, *WHOLE, setting), make_tables, out, mode="resume")
    assert contents(tmp_path) == before


def test_other_students_are_refused_where_a_warm_up_came_with_the_run(tmp_path, bert, earlier):
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(
            make_settings(bert, "training.steps=4"),
            make_tables,
            out,
            init=earlier,
            display=interrupt("training", 2),
        )
    before = contents(tmp_path)
    other = make_settings(bert, "training.steps=4", "cohort.layer_map=[[1], [2]]")
    with pytest.raises(RunError, match=r"cohort\.layer_map='spread', not") as error:
        train(other, make_tables, out, mode="resume", init=earlier)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_other_texts_are_refused_before_the_warm_up_goes_on(tmp_path, bert):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(config, make_tables, out, display=interrupt("warm-up", 2))
    before = contents(tmp_path)
    with pytest.raises(RunError, match="unlabeled differs"):
        train(config, fewer, out, mode="resume")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", ["warm-up", "training"])
def test_overwrite_starts_over(tmp_path, bert, whole, what):
    config, out = make_settings(bert, *WHOLE), tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(make_settings(bert, *WHOLE, "seed=4"), make_tables, out, display=interrupt(what, 2))
    notes = Watch()
    train(config, make_tables, out, mode="overwrite", display=notes)
    assert notes.starts == [("warm-up", 0, 5), ("training", 0, 5)]
    assert outcome(out) == outcome(whole)


def test_without_unlabelled_text_there_is_none(tmp_path, bert, cache):
    notes = Watch()
    summary = train(
        make_settings(bert, *SHORT),
        lambda: make_tables(unlabeled=0),
        tmp_path / "run",
        display=notes,
    )
    assert notes.warned[0] == "no unlabelled text: no warm-up"
    assert notes.starts == [("training", 0, 2)]
    assert summary["warmup"] is None
    assert not (tmp_path / "run" / "warmup.safetensors").exists()
    assert not cache.exists()
    assert load_cohort(RunFolder(tmp_path / "run"))


@pytest.fixture(scope="module")
def earlier(tiny_bert_folder, tmp_path_factory) -> Path:
    """A finished run with a warm-up. Read only."""
    out = tmp_path_factory.mktemp("earlier") / "run"
    settings = ["warmup.steps=4", "training.steps=4", UNCACHED]
    train(make_settings(tiny_bert_folder, *settings), make_tables, out)
    return out


@pytest.mark.parametrize("gone", [False, True])
def test_starting_from_a_run_that_was_warmed_up(tmp_path, bert, earlier, trained, gone):
    first, out = tmp_path / "first", tmp_path / "next"
    shutil.copytree(earlier, first)
    config = make_settings(bert, *REST, "training.steps=2")
    summary = train(config, make_tables, out, init=first)
    before = RunFolder(first).read_summary()
    assert summary["weights_sha256"] == before["weights_sha256"]
    assert summary["warmup"] is None  # this run made none
    expected = load_cohort(RunFolder(first))
    if gone:
        shutil.rmtree(first)  # a run folder needs no other
    for cohort in (trained[0], load_cohort(RunFolder(out))):
        for name in cohort:
            for key, value in expected[name].state_dict().items():
                assert torch.equal(cohort[name].state_dict()[key], value)
    texts, labels = make_texts(4, seed=7)
    assert evaluate_run(out, table_from_lists(texts, labels)).examples == 12
    if gone:
        export(out, tmp_path / "bundle")
        logits = predict_logits(expected[summary["selected"]], encode(out, texts), FP32)
        exported = Predictor.load(tmp_path / "bundle").predict_logits(texts)
        np.testing.assert_allclose(exported, logits, atol=1e-4)


@pytest.mark.parametrize(
    ("display", "error"),
    [(interrupt("training", 3), InterruptedRunError), (die("training", 1), MemoryError)],
)
def test_a_run_from_a_warmed_up_one_goes_on_or_starts_there_again(
    tmp_path, bert, earlier, display, error
):
    config = make_settings(bert, "training.steps=4")
    expected = train(config, make_tables, tmp_path / "whole", init=earlier)
    out = tmp_path / "parts"
    with pytest.raises(error):
        train(config, make_tables, out, init=earlier, display=display)
    resume(config, out, init=earlier)
    assert clockless(RunFolder(out).read_summary()) == clockless(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["cohort.layer_map=[[1], [2]]"], "other layer maps"),
        (["cohort.student_width=16", "cohort.student_peft=full"], "other student width"),
        (["cohort.layer_map=stride"], "other layer maps"),
        (["cohort.students=0"], "other layer maps"),
        ([], "other backbone"),
    ],
)
def test_a_warmed_up_run_that_does_not_fit(tmp_path, request, bert, earlier, settings, expected):
    folder = bert if settings else request.getfixturevalue("tiny_modernbert_folder")
    if "cohort.students=0" in settings:
        settings = [*settings, "phases.students.objectives.mutual.weight=0"]
    with pytest.raises(RunError, match=expected) as error:
        train(make_settings(folder, *settings), make_tables, tmp_path / "next", init=earlier)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("start", ["training", "interrupted"])
def test_students_of_an_earlier_run_are_not_warmed_up_again(tmp_path, bert, earlier, start):
    """Whether or not the recipe has a warm-up, and when such a run goes on, too."""
    config, out = make_settings(bert, "training.steps=4"), tmp_path / "next"
    expected = train(config, make_tables, tmp_path / "whole", init=earlier)
    config = make_settings(bert, "training.steps=4", "warmup.steps=3", UNCACHED)
    if start == "interrupted":
        with pytest.raises(InterruptedRunError):
            train(config, make_tables, out, init=earlier, display=interrupt("training", 3))
        notes = resume(config, out)
    else:
        notes = Watch()
        train(config, make_tables, out, init=earlier, display=notes)
    assert [what for what, *_ in notes.starts] == ["training"]
    assert clockless(RunFolder(out).read_summary()) == clockless(expected)
