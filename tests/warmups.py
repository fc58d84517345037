"""What the tests of the warm-up share."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from nanonet.data.readers import table_from_lists
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training import train as train_module
from nanonet.training.inputs import TrainingTables
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from test_training import Notes, losses
from tiny import make_settings, make_tables

STEPS = 4


SHORT = [f"warmup.steps={STEPS}", "training.steps=2"]


UNCACHED = "warmup.cache=false"


OBJECTIVES = "warmup.objectives"


@pytest.fixture(autouse=True)
def uncalibrated(monkeypatch):
    """Compare what was trained with what is loaded, without the temperature between them."""
    monkeypatch.setattr(RunFolder, "temperature", 1.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NANONET_CACHE", str(folder))
    return folder


@pytest.fixture
def bert(tiny_bert_folder):
    return tiny_bert_folder


class Watch(Notes):
    """A display that tells warm-up and training apart."""

    def __init__(self, on_step=None) -> None:
        super().__init__(lambda step: on_step and on_step(self.what, step))
        self.logged = {"warm-up": [], "training": []}
        self.on_log = lambda row: self.logged[self.what].append(row)

    def start(self, step, steps, what="training"):
        self.what = what
        self.events.append((what, step, steps))

    @property
    def starts(self):
        return [event for event in self.events if isinstance(event, tuple)]


def interrupt(what: str, step: int) -> Watch:
    """A display that presses Ctrl-C."""

    def press(now_what, now):
        if (now_what, now) == (what, step):
            os.kill(os.getpid(), signal.SIGINT)

    return Watch(press)


def clockless(summary: dict) -> dict:
    kept = {k: v for k, v in summary.items() if k not in ("seconds", "stopped")}
    return kept | {"warmup": summary["warmup"] and summary["warmup"]["weights_sha256"]}


def outcome(folder: Path) -> tuple:
    """All that a run has computed."""
    files = [folder / f"{name}.safetensors" for name in ("warmup", "learners")]
    summary = json.loads((folder / "summary.json").read_text())
    return clockless(summary), losses(folder), [file.read_bytes() for file in files]


@pytest.fixture
def trained(monkeypatch) -> list:
    """The cohorts of the runs, as they are when training ends."""
    kept = []
    finish = train_module._finish

    def keep(run, config, prepared, *rest):
        kept.append(prepared.cohort)
        return finish(run, config, prepared, *rest)

    monkeypatch.setattr(train_module, "_finish", keep)
    return kept


def encode(run: Path, texts):
    return TextTokenizer((run / "tokenizer.json").read_text(), 16).encode(texts).ids


def warm(folder, out, *settings, recipe="nanonet", tables=make_tables):
    """Run; return what the summary says of the warm-up, and what was told."""
    notes = Watch()
    # What comes after the warm-up is not looked at: co-training would take most of the time.
    few = ("training.steps=1", "propagation.labels=neighbours")
    config = make_settings(folder, *few, *settings, recipe=recipe)
    return train(config, tables, out, display=notes)["warmup"], notes


def fewer():
    tables = make_tables()
    return TrainingTables(tables.labeled, table_from_lists(tables.unlabeled.texts[:-1]))


REST = [
    f"phases.{phase}.{rate}=0"
    for phase in ("preparation", "teacher", "students")
    for rate in ("learning_rate", "head_learning_rate")
]


def resume(config, out: Path, **changes) -> Watch:
    notes = Watch()
    torch.manual_seed(99)
    train(config, make_tables, out, mode="resume", display=notes, **changes)
    return notes
