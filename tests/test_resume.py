"""Stopping and continuing: a resumed run ends where an uninterrupted one does, to the bit."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanonet.core.errors import InterruptedRunError, RunError
from nanonet.data.readers import table_from_lists
from nanonet.training.checkpoint import list_checkpoints, read_tensors
from nanonet.training.inputs import TrainingTables
from nanonet.training.train import train
from test_training import Notes, contents, losses, unread
from tiny import make_settings, make_tables


def interrupt_at(step: int) -> Notes:
    """A display that presses Ctrl-C."""
    return Notes(lambda now: os.kill(os.getpid(), signal.SIGINT) if now == step else None)


def interrupted(config, out: Path, step: int, tables=make_tables) -> None:
    with pytest.raises(InterruptedRunError, match=f"after step {step} of .*--resume"):
        train(config, tables, out, display=interrupt_at(step))


def clockless(summary: dict) -> dict:
    return {k: v for k, v in summary.items() if k not in ("seconds", "stopped")}


@pytest.fixture
def bert(tiny_bert_folder):
    return tiny_bert_folder


@pytest.mark.parametrize(
    ("step", "windows"), [(1, True), (2, True), (3, True), (5, True), (6, True), (5, False)]
)
def test_a_resumed_run_is_bit_identical(tmp_path, bert, step, windows):
    """Also where the teacher rests, as in the recipe's own windows it does from step 5 on."""
    dropout = ("views.dropout=0.2", "views.learners.teacher.dropout=0.2")
    config = make_settings(bert, *dropout, windows=windows)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(config, make_tables, whole)
    interrupted(config, parts, step)
    assert not (parts / "summary.json").exists()
    torch.manual_seed(99)
    notes = Notes()
    summary = train(config, make_tables, parts, mode="resume", display=notes)
    assert notes.events[0] == ("start", step, 6)
    assert clockless(summary) == clockless(expected)
    name = "learners.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert losses(parts) == losses(whole)


def test_the_teacher_rests_in_the_end_and_students_go_on(tmp_path, bert):
    config, run = make_settings(bert, windows=False), tmp_path / "run"
    interrupted(config, run, 4)  # of 6: the last of the teacher's
    first = read_tensors(list_checkpoints(run / "checkpoints")[-1] / "trained.safetensors")
    train(config, make_tables, run, mode="resume")
    last = read_tensors(run / "learners.safetensors")
    moved = {name.split(".")[0] for name in last if not torch.equal(first[name], last[name])}
    assert moved == {"student1", "student2"}


def test_a_teacher_alone_is_done_when_it_would_rest(tmp_path, bert):
    config = make_settings(bert, "cohort.students=0", windows=False)
    summary = train(config, make_tables, tmp_path / "run")
    assert (summary["finished"], summary["selected"]) == (True, "teacher")


def test_a_run_stopped_by_the_clock_is_complete_and_continues(tmp_path, bert):
    expected = train(make_settings(bert), make_tables, tmp_path / "whole")
    out, notes = tmp_path / "parts", Notes()
    config = make_settings(bert, "training.max_minutes=1e-9")
    first = train(config, make_tables, out, display=notes)
    assert (first["steps"], first["finished"], first["stopped"]) == (1, False, "time limit")
    assert (out / "learners.safetensors").is_file()
    assert "time limit reached after step 1 of 6" in notes.warned[-1]
    second = train(config, make_tables, out, mode="resume")
    assert second["steps"] == 2
    summary = train(make_settings(bert), make_tables, out, mode="resume")  # the limit may differ
    assert clockless(summary) == clockless(expected)
    assert losses(out) == losses(tmp_path / "whole")


def test_a_run_out_of_memory_may_continue_with_gradient_checkpointing(tmp_path, bert):
    config, out = make_settings(bert), tmp_path / "parts"
    expected = train(config, make_tables, tmp_path / "whole")
    interrupted(config, out, 3)
    saving = make_settings(bert, "training.gradient_checkpointing=true")
    assert clockless(train(saving, make_tables, out, mode="resume")) == clockless(expected)


def test_a_run_that_was_killed_repeats_the_steps_since_its_checkpoint(tmp_path, bert):
    config = make_settings(bert)
    expected = train(config, make_tables, tmp_path / "whole")
    out = tmp_path / "killed"

    def die(step):
        if step == 4:  # before the checkpoint of step 4, after the log row of step 3
            raise MemoryError

    with pytest.raises(MemoryError):
        train(config, make_tables, out, display=Notes(die))
    assert [p.name for p in list_checkpoints(out / "checkpoints")] == ["step-000002"]
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "training", "step": 4, "los')  # half a line
    assert clockless(train(config, make_tables, out, mode="resume")) == clockless(expected)
    assert losses(out) == losses(tmp_path / "whole")


def test_resume_without_a_checkpoint_starts_over(tmp_path, bert):
    config = make_settings(bert)
    expected = train(config, make_tables, tmp_path / "new", mode="resume")
    out = tmp_path / "early"

    def die(step):
        raise MemoryError

    with pytest.raises(MemoryError):
        train(config, make_tables, out, display=Notes(die))
    assert list_checkpoints(out / "checkpoints") == []
    assert clockless(train(config, make_tables, out, mode="resume")) == clockless(expected)


def test_resume_of_a_finished_run_changes_nothing(tmp_path, bert):
    config = make_settings(bert, "training.steps=2")
    summary = train(config, make_tables, tmp_path / "run")
    before = contents(tmp_path)
    notes = Notes()
    assert train(config, unread, tmp_path / "run", mode="resume", display=notes) == summary
    assert notes.said == [f"run {tmp_path / 'run'} is finished already"]
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("seed=1", "started with seed=0, not 1"),
        ("training.steps=9", "training.steps=6, not 9"),
        ("training.labeled_batch=3", "training.labeled_batch=6, not 3"),
        ("phases.students.learning_rate=0.5", "phases.students.learning_rate='auto', not 0.5"),
        ("phases.students.objectives.mutual.weight=3", "objectives.mutual.weight=0.5, not 3"),
        ("phases.students.objectives.mutual.temperature=2", "mutual.temperature=None, not 2"),
        ("cohort.layer_map=stride", "cohort.layer_map='spread', not 'stride'"),
    ],
)
def test_other_settings_are_refused_by_key(tmp_path, bert, setting, expected):
    interrupted(make_settings(bert), tmp_path / "run", 2)
    before = contents(tmp_path)
    with pytest.raises(RunError, match=expected) as error:
        train(make_settings(bert, setting), make_tables, tmp_path / "run", mode="resume")
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_other_data_is_refused_by_name(tmp_path, bert):
    config, out = make_settings(bert), tmp_path / "run"
    interrupted(config, out, 2)
    before = contents(tmp_path)
    tables = make_tables()
    fewer = table_from_lists(tables.unlabeled.texts[:-1], source="unlabeled")
    others = {
        "unlabeled differs": TrainingTables(tables.labeled, fewer),
        "labeled differs": make_tables(labeled=5),
        "validation differs": TrainingTables(tables.labeled, tables.unlabeled, tables.labeled),
    }
    for expected, other in others.items():
        with pytest.raises(RunError, match=expected):
            train(config, lambda other=other: other, out, mode="resume")
        assert contents(tmp_path) == before


def test_another_backbone_in_the_same_place_is_refused(tmp_path, bert):
    from tiny import bert_config, make_model, save_folder

    folder = save_folder(bert_config(), tmp_path / "backbone")
    config, out = make_settings(folder), tmp_path / "run"
    interrupted(config, out, 2)
    make_model(bert_config(), seed=1).save_pretrained(folder)
    with pytest.raises(RunError, match="backbone_fingerprint differs"):
        train(config, make_tables, out, mode="resume")


def test_other_hardware_is_refused_and_threads_are_kept(tmp_path, bert, monkeypatch):
    config, out = make_settings(bert, "training.precision=auto"), tmp_path / "run"
    monkeypatch.setattr("nanonet.training.device._has_bf16", lambda kind: False)
    interrupted(config, out, 2)
    monkeypatch.setattr("nanonet.training.device._has_bf16", lambda kind: True)
    with pytest.raises(RunError, match=r"computed with cpu, fp32.*cpu, bf16"):
        train(config, make_tables, out, mode="resume")


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, bert, monkeypatch):
    from nanonet.training import checkpoint

    config, out = make_settings(bert), tmp_path / "run"
    expected = train(config, make_tables, tmp_path / "whole")
    write, calls = checkpoint.write_bytes, []

    def fill_up(path, data):
        calls.append(path)
        if len(calls) > 3:  # two files of the first checkpoint, one of the second
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes", fill_up)
    with pytest.raises(RunError) as error:
        train(config, make_tables, out)
    assert "step-000004 could not be written: No space left on device" in str(error.value)
    assert "\n" not in str(error.value)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-000002"]
    monkeypatch.undo()
    assert clockless(train(config, make_tables, out, mode="resume")) == clockless(expected)


@pytest.mark.parametrize("method", ["append_metrics", "write_config", "write_labels"])
def test_a_disk_that_is_full_elsewhere_is_one_line_too(tmp_path, bert, monkeypatch, method):
    def fail(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    config, out = make_settings(bert, "training.steps=3"), tmp_path / "run"
    monkeypatch.setattr(f"nanonet.training.run_folder.RunFolder.{method}", fail)
    with pytest.raises(RunError, match=r"could not be written: No space.*--resume"):
        train(config, make_tables, out)
    monkeypatch.undo()
    if method == "write_config":
        return  # the folder holds nothing that would tell it from a foreign one
    assert train(config, make_tables, out, mode="resume")["finished"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from tiny import make_settings, make_tables
from nanonet.core.errors import RunError
from nanonet.training.train import train
torch.set_num_threads(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
try:
    train(make_settings({backbone!r}), make_tables, Path({out!r}))
except RunError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_file_size_limit_of_the_system(tmp_path, bert):
    out = tmp_path / "run"
    tests = str(Path(__file__).parent)
    code = LIMITED.format(tests=tests, backbone=str(bert), out=str(out))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "checkpoint" in done.stdout
    assert "File too large" in done.stdout
    assert done.stdout.count("\n") == 1
    assert list((out / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["trained.safetensors", "optimizers.safetensors", "soft_labels.safetensors", "position.json"],
)
@pytest.mark.parametrize("damage", ["cut", "gone", "junk"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_works(tmp_path, bert, name, damage):
    config, out = make_settings(bert), tmp_path / "run"
    interrupted(config, out, 5)
    newest = out / "checkpoints" / "step-000005"
    path = newest / name
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"[1, 2]")
    with pytest.raises(RunError, match=r"step-000005 cannot be used: .*delete it") as error:
        train(config, make_tables, out, mode="resume")
    assert "\n" not in str(error.value)
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert train(config, make_tables, out, mode="resume")["finished"]


def test_checkpoints_are_ordered_by_number(tmp_path):
    for name in ("step-999999", "step-1000000", "step-000050", ".step-000060.x.tmp", "step-x"):
        (tmp_path / name).mkdir()
    found = [path.name for path in list_checkpoints(tmp_path)]
    assert found == ["step-000050", "step-999999", "step-1000000"]


def test_other_versions_are_noted(bert, tmp_path):
    run = tmp_path / "run"
    config = make_settings(bert)
    interrupted(config, run, 2)
    path = run / "environment.json"
    environment = json.loads(path.read_text())
    environment["versions"]["torch"] = "0.0.1"
    path.write_text(json.dumps(environment))
    notes = Notes()
    train(config, make_tables, run, mode="resume", display=notes)
    assert any("torch 0.0.1 ->" in warning for warning in notes.warned)
