"""Where the time goes: parts that add up, a trace, and no trace of it in the result."""

import json
import os
import signal
import time

import pytest

from nanonet.core.errors import InterruptedRunError
from nanonet.training.profile import OFF, STEP_PARTS, Profile, report_lines, traced_steps
from nanonet.training.train import train
from runs import succeed
from test_training import Notes, losses
from tiny import make_settings, make_tables

LONG = ("training.steps=16", "training.checkpoint_every=4")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def parts_of(report) -> dict:
    return {row["part"]: row for row in report["parts"]}


def test_inner_spans_are_not_counted_twice(clock, tmp_path):
    profile = Profile(tmp_path)
    with profile.span("losses"):
        clock(1.0)
        with profile.span("teacher forward", rows=4, tokens=40):
            clock(2.0)
        clock(3.0)
    clock(4.0)
    with profile.within("warm-up"), profile.span("losses"):
        clock(6.0)
    profile.count(5, 60)
    report = profile.report()
    assert report["seconds"] == 16.0
    assert (report["steps"], report["tokens_per_second"]) == (1, 10.0)
    assert report["examples_per_second"] == round(5 / 6, 1)
    found = parts_of(report)
    assert {name: row["seconds"] for name, row in found.items()} == {
        "teacher forward": 2.0,
        "losses": 4.0,
        "warm-up losses": 6.0,
        "other": 4.0,
    }
    assert found["teacher forward"]["tokens_per_second"] == 20.0
    assert found["teacher forward"]["examples_per_second"] == 2.0
    assert found["losses"]["share"] == 0.25
    assert found["losses"]["tokens_per_second"] is None
    assert sum(row["share"] for row in found.values()) == 1.0


def test_a_span_ends_where_its_block_fails(clock, tmp_path):
    profile = Profile(tmp_path)

    def fail() -> None:
        with profile.span("data"):
            clock(1.0)
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    clock(2.0)
    found = parts_of(profile.report())
    assert (found["data"]["seconds"], found["other"]["seconds"]) == (1.0, 2.0)


def test_off_it_keeps_nothing():
    with OFF.span("data"):
        pass
    OFF.start_step(0)
    OFF.count(1, 1)
    assert (OFF.parts, OFF.steps) == ({}, 0)
    assert OFF.span("data") is OFF.span("losses")  # one object for all: nothing is made


@pytest.mark.parametrize(
    ("first", "steps", "busy", "expected"),
    [
        (0, 200, range(50, 200), range(55, 58)),
        (120, 200, range(50, 200), range(125, 128)),
        (0, 200, range(50, 57), range(54, 57)),
        (0, 6, range(6), range(3, 6)),
        (4, 6, range(6), range(4, 6)),
        (0, 2, range(2), range(2)),
        (190, 200, range(50, 100), range(190, 193)),
    ],
)
def test_which_steps_are_traced(first, steps, busy, expected):
    assert traced_steps(first, steps, busy) == expected


def test_a_profiled_run_gives_the_same_weights_and_says_where_its_time_went(
    tmp_path, tiny_bert_folder
):
    config = make_settings(tiny_bert_folder, *LONG)
    tables = make_tables(validation=2)
    plain, out, notes = tmp_path / "plain", tmp_path / "out", Notes()
    expected = train(config, lambda: tables, plain)
    found = train(config, lambda: tables, out, display=notes, profile=True)
    assert found["weights_sha256"] == expected["weights_sha256"]
    assert losses(out) == losses(plain)
    assert not (plain / "profile.json").exists()

    report = json.loads((out / "profile.json").read_text())
    parts = parts_of(report)
    assert parts.keys() == {
        *("reading", "model", *STEP_PARTS, "propagation", "guard"),
        *("evaluation", "checkpoint", "tracing"),
        "other",
    }
    assert all(row["seconds"] >= 0.0 for row in report["parts"])
    assert sum(row["seconds"] for row in report["parts"]) == pytest.approx(
        report["seconds"], abs=0.02
    )
    assert report["steps"] == 16 - 3
    assert parts["checkpoint"]["calls"] == 4 - 1  # one while a trace was recorded
    assert parts["teacher forward"]["tokens_per_second"] > 0
    assert notes.said[-len(report_lines(report)) :] == report_lines(report)
    assert notes.said[-1].startswith("whole steps: ")

    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    named = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert named.count("backward") == 3 * 2  # a teacher's and the students' in each traced step
    assert any(event["name"] == "aten::addmm" for event in events)


def test_an_interrupted_run_and_its_continuation_are_profiled(tmp_path, tiny_bert_folder):
    config, out = make_settings(tiny_bert_folder, *LONG), tmp_path / "out"
    expected = train(config, make_tables, tmp_path / "whole")
    stop = Notes(lambda now: os.kill(os.getpid(), signal.SIGINT) if now == 9 else None)
    with pytest.raises(InterruptedRunError):
        train(config, make_tables, out, display=stop, profile=True)
    first = json.loads((out / "profile.json").read_text())
    assert first["steps"] == 9  # stopped before it came to the steps that it would trace
    found = train(config, make_tables, out, mode="resume", profile=True)
    assert found["weights_sha256"] == expected["weights_sha256"]
    assert json.loads((out / "profile.json").read_text())["steps"] == 16 - 9 - 3


def test_a_warm_up_is_kept_apart(tmp_path, tiny_bert_folder):
    settings = ("warmup.steps=3", "warmup.cache=false", *LONG)
    train(make_settings(tiny_bert_folder, *settings), make_tables, tmp_path / "r", profile=True)
    report = json.loads((tmp_path / "r" / "profile.json").read_text())
    parts = parts_of(report)
    assert parts["warmup backward"]["calls"] == 3
    assert report["steps"] == 16 - 3


def test_the_command(train_arguments, tmp_path):
    outcome = succeed(*train_arguments, "--out", tmp_path / "run", "--profile")
    assert "where the time went" in outcome.err
    assert "teacher forward" in outcome.err
    assert (tmp_path / "run" / "trace.json").is_file()
    assert "where the time went" in (tmp_path / "run" / "log.txt").read_text()
