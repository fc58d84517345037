"""Many processes train what one would: the same losses, the same weights, one writer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nanonet.training.checkpoint import list_checkpoints, read_tensors
from nanonet.training.processes import ALONE, Processes, Share, join_processes
from nanonet.training.step import make_chunks
from nanonet.training.train import train
from test_training import losses
from tiny import make_settings, make_tables

TESTS = Path(__file__).parent
CLOSE = 1e-5
VIEWS = ("views.token_cutoff=0.2", "views.shuffle=0.3", "views.adversarial=3")
NO_DROPOUT = ("views.dropout=0.0",)
HIDDEN = "phases.students.objectives.representation_distillation.level=hidden"
ATTENTION = "phases.students.objectives.attention_distillation.weight=1.0"
FEEDBACK = "phases.teacher.objectives.feedback.weight=0.2"
WARMUP = ("warmup.steps=3", "warmup.cache=false")
# Name, recipe, settings: each is trained by one process and by several.
RUNS = [
    ("nanonet", "nanonet", [*WARMUP, FEEDBACK]),
    ("views", "nanonet", [*VIEWS, "training.labeled_batch=3"]),
    ("parts", "nanonet", [HIDDEN, ATTENTION, "cohort.student_peft=full"]),
    ("self-training", "self-training", []),
    ("psnet", "psnet", [*NO_DROPOUT, "views.learners.teacher.dropout=0.0"]),
    ("disco", "disco", [*NO_DROPOUT]),
    ("distill", "distill", []),
    ("supervised", "supervised", ["training.labeled_batch=1"]),  # one process has no rows
]


def launch(count: int, *arguments: object, launcher: str = "torchrun", **how):
    """Run a script or module in this many processes."""
    launchers = {
        "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", count),
        "accelerate": (
            *("accelerate.commands.launch", "--multi_gpu", "--num_processes", count),
            *("--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"),
            *("--main_process_port", 0),
        ),
    }
    command = [sys.executable, "-m", *launchers[launcher], *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TESTS,
        env=environment,
        **how,
    )


def finish(process, status: int | None = 0) -> str:
    """Return what a launch wrote to standard error."""
    _, err = process.communicate(timeout=300)
    if status is not None:
        assert process.returncode == status, err
    return err


def assert_close(found: Path, expected: Path) -> None:
    rows = [losses(folder) for folder in (found, expected)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for own, other in zip(*rows, strict=True):
        assert own["losses"] == pytest.approx(other["losses"], abs=CLOSE)
        assert own["learning_rates"] == other["learning_rates"]
    ours, theirs = (read_tensors(folder / "learners.safetensors") for folder in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # The softmax takes no notice of a key's bias: its gradient is rounding, which Adam blows up.
        if "key.bias" not in name:
            torch.testing.assert_close(ours[name], tensor, rtol=0.0, atol=1e-4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_bert_folder) -> Path:
    """A folder of the runs by one process (``1``) and by two (``2``)."""
    folder = tmp_path_factory.mktemp("many")
    tables = {"validation": 2}
    jobs = [(name, recipe, settings, "new", tables) for name, recipe, settings in RUNS]
    started = launch(2, TESTS / "many.py", folder / "2", tiny_bert_folder, json.dumps(jobs))
    for name, recipe, settings in RUNS:
        config = make_settings(tiny_bert_folder, *settings, recipe=recipe)
        train(config, lambda: make_tables(**tables), folder / "1" / name)
    finish(started)
    return folder


@pytest.mark.parametrize("name", [name for name, *_ in RUNS])
def test_two_processes_give_what_one_gives(runs, name):
    assert_close(runs / "2" / name, runs / "1" / name)
    one, two = (json.loads((runs / n / name / "summary.json").read_text()) for n in "12")
    varying = ("seconds", "weights_sha256", "warmup", "selection")
    assert {k: v for k, v in two.items() if k not in varying} == {
        k: v for k, v in one.items() if k not in varying
    }
    assert two["selection"]["scores"] == pytest.approx(one["selection"]["scores"], abs=CLOSE)
