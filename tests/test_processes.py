"""Many processes train what one would: the same losses, the same weights, one writer."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from exact import make_exact
from nanonet.core.config import TrainingConfig
from nanonet.core.errors import ConfigError
from nanonet.training.checkpoint import list_checkpoints, read_tensors
from nanonet.training.device import choose_hardware
from nanonet.training.processes import ALONE, Processes, Share, join_processes
from nanonet.training.step import make_chunks
from nanonet.training.train import train
from runs import succeed
from test_engine import make_engine
from test_resume import interrupted
from test_training import losses
from tiny import make_settings, make_tables

TESTS = Path(__file__).parent
CLOSE = 1e-5
VIEWS = ("views.token_cutoff=0.2", "views.shuffle=0.3", "views.adversarial=3")
NO_DROPOUT = ("views.dropout=0.0", "views.learners.teacher.dropout=0.0")
HIDDEN = "phases.students.objectives.representation_distillation.level=hidden"
ATTENTION = "phases.students.objectives.attention_distillation.weight=1.0"
FEEDBACK = "phases.teacher.objectives.feedback.weight=0.2"
WARMUP = ("warmup.steps=3", "warmup.cache=false")
# Name, recipe, settings: each is trained by one process and by several.
RUNS = [
    ("nanonet", "nanonet", [*WARMUP, FEEDBACK]),
    ("views", "nanonet", [*VIEWS, "training.labeled_batch=3"]),
    ("parts", "nanonet", [HIDDEN, ATTENTION, "propagation.contrastive_steps=3"]),
    ("self-training", "self-training", []),
    ("psnet", "psnet", [*NO_DROPOUT, *WARMUP]),
    ("disco", "disco", ["views.dropout=0.0", *WARMUP]),
    ("distill", "distill", []),
    ("supervised", "supervised", ["training.labeled_batch=1"]),  # one process has no rows
]
ENOUGH = {"validation": 25, "unlabeled": 100}  # texts per class for heads to be fitted
HEADS = ["training.head_texts=280"]


@contextmanager
def launched(count: int, *arguments: object, launcher: str = "torchrun"):
    """Run a script or module in this many processes; none of them outlives the block."""
    launchers = {
        "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", count),
        "accelerate": (
            *("accelerate.commands.launch", "--multi_gpu", "--num_processes", count),
            *("--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"),
            *("--main_process_port", 0),
        ),
    }
    command = [sys.executable, "-m", *launchers[launcher], *arguments]
    with subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TESTS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def errors_of(process) -> list[str]:
    """Wait for a launch that fails, and return our lines of what it says."""
    _, text = process.communicate(timeout=200)
    assert process.returncode != 0
    found = [line for line in text.splitlines() if line.startswith("error: ")]
    assert found, text
    return found


def has_logged(run: Path) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


def assert_close(found: Path, expected: Path) -> None:
    rows = [losses(folder) for folder in (found, expected)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for own, other in zip(*rows, strict=True):
        assert own["losses"] == pytest.approx(other["losses"], abs=CLOSE)
        assert own["learning_rates"] == other["learning_rates"]
    ours, theirs = (read_tensors(folder / "learners.safetensors") for folder in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # The softmax takes no notice of a key's bias: its gradient is noise, which Adam blows up.
        # So it does with single weights where all are trained.
        if "key.bias" not in name:
            difference = (ours[name] - tensor).abs().flatten()
            assert float(difference.quantile(0.9)) < CLOSE, name


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_bert_folder) -> Path:
    """A folder of the runs by one process (``1``) and by two (``2``)."""
    folder = tmp_path_factory.mktemp("many")
    tables = {"validation": 2}
    jobs = [(name, recipe, settings, "new", tables) for name, recipe, settings in RUNS]
    with pytest.MonkeyPatch.context() as patch:
        make_exact(patch.setattr)
        # One process begins this one, and two go on.
        config = make_settings(tiny_bert_folder, *RUNS[0][2])
        interrupted(config, folder / "2" / "resumed", 4, lambda: make_tables(**tables))
        jobs.append(("resumed", "nanonet", RUNS[0][2], "resume", tables))
        jobs.append(("heads", "nanonet", HEADS, "new", ENOUGH))
        script = (TESTS / "many.py", folder / "2", tiny_bert_folder, json.dumps(jobs))
        with launched(2, *script) as process:
            for name, recipe, settings in RUNS:
                config = make_settings(tiny_bert_folder, *settings, recipe=recipe)
                train(config, lambda: make_tables(**tables), folder / "1" / name)
            config = make_settings(tiny_bert_folder, *HEADS)
            train(config, lambda: make_tables(**ENOUGH), folder / "1" / "heads")
            _, text = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return folder


@pytest.mark.parametrize("name", [name for name, *_ in RUNS])
def test_two_processes_give_what_one_gives(runs, name):
    assert_close(runs / "2" / name, runs / "1" / name)
    assert_same_outcome(runs / "2" / name, runs / "1" / name)


def test_two_processes_fit_the_same_heads(runs):
    one, two = (
        json.loads((runs / n / "heads" / "summary.json").read_text())["heads"] for n in "12"
    )
    assert set(one) == {"student1", "student2"}
    assert all(head["texts"] == 280 for head in one.values())
    assert any(head["kept"] for head in one.values())
    assert two == one
    ours, theirs = (read_tensors(runs / n / "heads" / "learners.safetensors") for n in "12")
    for name in (f"{student}.head.linear.weight" for student in one):
        # Where the solver stops moves with the vectors' last digits.
        close = 0.01 * float(theirs[name].abs().max())
        torch.testing.assert_close(ours[name], theirs[name], rtol=0.0, atol=close)


def assert_same_outcome(found: Path, expected: Path) -> None:
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (expected, found))
    varying = ("seconds", "weights_sha256", "warmup", "selection", "calibration")
    assert {k: v for k, v in two.items() if k not in varying} == {
        k: v for k, v in one.items() if k not in varying
    }
    # The flatter its loss, the more a temperature moves with the logits' last digits.
    temperatures = [run["calibration"]["temperature"] for run in (one, two)]
    assert temperatures[1] == pytest.approx(temperatures[0], rel=1e-4)
    assert two["selection"]["scores"] == pytest.approx(one["selection"]["scores"], abs=CLOSE)


def test_two_processes_continue_what_one_began(runs):
    assert_close(runs / "2" / "resumed", runs / "1" / "nanonet")
    assert_same_outcome(runs / "2" / "resumed", runs / "1" / "nanonet")


def test_one_process_writes(runs):
    one, two = (runs / n / "nanonet" for n in "12")
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    lines = [(folder / "log.txt").read_text().splitlines() for folder in (one, two)]
    assert len(lines[0]) == len(lines[1])
    assert sum("2 processes" in line for line in lines[1]) == 1
    steps = [path.name for path in list_checkpoints(two / "checkpoints")]
    assert steps == ["step-000004", "step-000006"]


def arguments(train_arguments, *more: object) -> list[object]:
    settings = ("--set", "training.log_every=1", "--set", "training.checkpoint_every=100")
    return ["-m", "nanonet", *train_arguments, *settings, *more]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_and_one_process_can_go_on(train_arguments, tmp_path, number):
    # By neighbours: co-training sorts texts, and a last digit can change an order.
    alone = ("--set", "propagation.labels=neighbours")
    steps = ("--set", "training.steps=40", *alone, "--device", "cpu")
    out = tmp_path / "run"
    call = arguments(train_arguments, *steps, "--out", out)
    with launched(2, *call, launcher="accelerate") as process:
        while not has_logged(out) and process.poll() is None:
            time.sleep(0.01)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.terminate()  # the launcher hands it on
        (line,) = errors_of(process)
    (newest,) = list_checkpoints(out / "checkpoints")
    step = int(newest.name[5:])
    assert 0 < step < 40
    assert f"stopped after step {step} of 40; continue with --resume" in line
    assert not (out / "summary.json").exists()

    succeed("train", "--out", out, "--resume")
    whole = tmp_path / "whole"
    succeed(*arguments(train_arguments, *steps, "--out", whole)[2:])
    assert_close(out, whole)


FAILING = """
import os, sys
from nanonet.cli import main
from nanonet.core.errors import RunError
from nanonet.training.engine import Engine

draw = Engine._draw

def fail(self, step):
    if os.environ["RANK"] == {rank!r} and step == 2:
        {what}
    return draw(self, step)

Engine._draw = fail
main()
"""


@pytest.mark.parametrize(
    ("rank", "what", "expected"),
    [
        ("1", 'raise RunError("no rows today")', "no rows today"),
        ("1", "os._exit(9)", "another process of this run has ended"),
    ],
)
def test_an_error_of_one_process_ends_all_with_one_line(
    train_arguments, tmp_path, rank, what, expected
):
    script = tmp_path / "failing.py"
    script.write_text(FAILING.format(rank=rank, what=what))
    call = [*arguments(train_arguments)[2:], "--out", tmp_path / "run"]
    with launched(2, script, *call) as process:
        (line,) = errors_of(process)
    assert expected in line


def test_an_error_of_all_processes_is_one_line(train_arguments, tmp_path):
    call = arguments(train_arguments, "--out", tmp_path / "run")
    call[call.index("--unlabeled") + 1] = tmp_path / "none.csv"
    with launched(2, *call) as process:
        (line,) = errors_of(process)
    assert "no such file" in line
    assert not (tmp_path / "run").exists()


class Collected(Processes):
    """A process that leaves what it adds up to the test."""

    def add_up(self, numbers):
        self.collected.append(numbers)  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [2, 3, 9])
def test_shares_make_up_the_whole(count):
    engine = make_engine(HIDDEN, ATTENTION)
    rows, learner, keep = engine.rows.unlabeled[:7], engine.cohort["student1"], engine.plan.parts
    lengths = torch.tensor([len(row) for row in rows])
    counts = {"units": torch.ones(7, dtype=torch.int64), "tokens": lengths, "pairs": lengths**2}
    chunks = make_chunks(rows, 0.15, "cpu")
    expected = learner.read(chunks, None, keep)
    maps = [m for maps in expected.attention.values() for m in maps]
    values = [expected.pooled, *maps, *expected.hidden_states]
    sums, read = None, 0
    for rank in range(count):
        process = Collected(rank, count)
        object.__setattr__(process, "collected", [])
        share = Share(chunks, counts, process)
        output = learner.read(share.chunks, None, keep, share.gather)
        output.pooled.sum().backward()  # who has nothing to do has a gradient of zeros
        own = process.collected
        sums = own if sums is None else [a + b for a, b in zip(sums, own, strict=True)]
        read += int(share._mine.sum())
    assert read == 7
    for found, value in zip(sums, values, strict=True):
        torch.testing.assert_close(found, value.detach(), rtol=0.0, atol=1e-5)


def test_alone_nothing_is_shared(monkeypatch):
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert join_processes("cpu") is ALONE
    numbers = torch.ones(2)
    ALONE.add_up(numbers)
    assert numbers.tolist() == [1.0, 1.0]
    assert ALONE.agree("time limit") == "time limit"
    chunks = make_chunks([np.arange(3)], 0.1, "cpu")
    share = Share(chunks, {}, ALONE)
    assert share.chunks is chunks
    assert share.gather(numbers, "units") is numbers


def test_cores_and_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr("nanonet.training.device.usable_cores", lambda: 8)
    third = Processes(2, 6, 2, 3)
    assert choose_hardware(TrainingConfig(device="cpu"), third).threads == 2
    assert choose_hardware(TrainingConfig(device="cpu", threads=5), third).threads == 5
    many = Processes(2, 20, 2, 20)
    assert choose_hardware(TrainingConfig(device="cpu"), many).threads == 1
    with pytest.raises(ConfigError, match=r"'cuda:0', which all processes would share"):
        choose_hardware(TrainingConfig(device="cuda:0"), third)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    for device in ("auto", "cuda"):
        assert choose_hardware(TrainingConfig(device=device), third).device == "cuda:2"
    assert choose_hardware(TrainingConfig(device="auto")).device == "cuda"
