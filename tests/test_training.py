"""`train`: from tables to a run folder."""

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from nanonet.core.config import read_recipe, recipe_names
from nanonet.core.errors import RunError
from nanonet.data.readers import table_from_lists
from nanonet.models.peft import PEFT
from nanonet.training.checkpoint import read_tensors
from nanonet.training.inputs import TrainingTables
from nanonet.training.run_folder import RunFolder, weights_sha256
from nanonet.training.train import train
from test_peft import counts
from tiny import make_settings, make_tables

FILES = {
    "config.toml",
    "environment.json",
    "labels.json",
    "tokenizer.json",
    "seen_labeled.bin",
    "token_counts.bin",
    "seen_unlabeled.bin",
    "metrics.jsonl",
    "log.txt",
    "checkpoints",
    "learners.safetensors",
    "summary.json",
}


class Notes:
    """A display that keeps what it is told."""

    def __init__(self, on_step=None) -> None:
        self.said, self.warned, self.rows, self.events = [], [], [], []
        self.say, self.warn = self.said.append, self.warned.append
        self.on_log = self.rows.append
        self._on_step = on_step

    def start(self, step, steps, what="training"):
        self.events.append(("start" if what == "training" else what, step, steps))

    def on_step(self, step):
        self.events.append(step)
        if self._on_step:
            self._on_step(step)

    def stop(self):
        self.events.append("stop")


def unread():
    raise AssertionError("the data was read")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def losses(folder: Path) -> list[dict]:
    """Metric lines without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


@pytest.fixture
def bert(tiny_bert_folder):
    return tiny_bert_folder


def test_run_folder_and_summary(tmp_path, bert):
    out, notes = tmp_path / "deep" / "run", Notes()
    tables = make_tables(validation=2)
    config = make_settings(bert)
    summary = train(config, lambda: tables, out, display=notes)

    assert {path.name for path in out.iterdir()} == FILES
    assert json.loads((out / "summary.json").read_text()) == summary
    assert {k: summary[k] for k in ("task", "teacher", "students", "classes", "rows")} == {
        "task": "classification",
        "teacher": "teacher",
        "students": ["student1", "student2"],
        "classes": 3,
        "rows": {"labeled": 12, "unlabeled": 30, "validation": 6},
    }
    assert summary["layer_maps"] == {
        "teacher": [1, 2, 3, 4],
        "student1": [2, 4],
        "student2": [1, 4],
    }
    assert summary["truncated"] == {"labeled": 0, "unlabeled": 0, "validation": 0}
    assert (summary["steps"], summary["finished"], summary["stopped"]) == (6, True, None)
    assert summary["selected"] in summary["students"]
    assert summary["seconds"] > 0
    tensors = read_tensors(out / "learners.safetensors")
    assert summary["weights_sha256"] == weights_sha256(tensors)
    for name, count in summary["trainable_parameters"].items():
        own = [t.numel() for key, t in tensors.items() if key.startswith(f"{name}.")]
        assert sum(own) == count < summary["total_parameters"][name]

    saved, inputs = RunFolder(out).read_config()
    assert saved == config
    assert set(inputs) == {"labeled", "unlabeled", "validation", "backbone_fingerprint"}
    assert json.loads((out / "labels.json").read_text())["values"] == [0, 1, 2]
    environment = json.loads((out / "environment.json").read_text())
    assert environment["hardware"]["threads"] == 1
    assert environment["versions"]["torch"]
    assert len(np.fromfile(out / "seen_labeled.bin", "<u8")) == 12
    assert [p.name for p in sorted((out / "checkpoints").iterdir())] == [
        "step-000004",
        "step-000006",
    ]
    assert [row["step"] for row in losses(out)] == [3, 6]
    assert notes.events == [("start", 0, 6), 1, 2, 3, 4, 5, 6, "stop"]
    assert [row.step for row in notes.rows] == [3, 6]
    log = (out / "log.txt").read_text()
    assert all(text in log for text in notes.said)
    assert (
        "texts: 12 labeled, 30 unlabeled, 6 validation (none cut to data.max_length); 3 classes"
        in log
    )
    assert summary["selection"]["labels_used"] == 6
    assert "labels used to choose: 6" in log


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_trains_and_a_seed_decides_every_bit(tmp_path, request, recipe, family):
    folder = request.getfixturevalue(f"tiny_{family}_folder")
    short = ["training.steps=3"]
    if "warmup" in read_recipe(recipe):
        short += ["warmup.steps=3", "warmup.cache=false"]
    weights = []
    for i, seed in enumerate((0, 0, 1)):
        config = make_settings(folder, f"seed={seed}", *short, recipe=recipe)
        summary = train(config, make_tables, tmp_path / str(i))
        weights.append(summary["weights_sha256"])
    assert weights[0] == weights[1] != weights[2]
    assert losses(tmp_path / "0") == losses(tmp_path / "1") != losses(tmp_path / "2")


@pytest.mark.parametrize("method", list(PEFT))
def test_every_method_trains(tmp_path, tiny_modernbert_folder, method):
    peft = [f"cohort.teacher_peft={method}", f"cohort.student_peft={method}"]
    config = make_settings(tiny_modernbert_folder, *peft, "training.steps=3")
    summary = train(config, make_tables, tmp_path / "run")
    tensors = read_tensors(tmp_path / "run" / "learners.safetensors")
    head_only = all(".head." in name for name in tensors)
    assert head_only == (method == "head")
    whole = summary["trainable_parameters"] == summary["total_parameters"]
    assert whole == (method == "full")
    for name, layer_map in summary["layer_maps"].items():
        expected = counts("modernbert", method, len(layer_map), layer_map[0] == 1)
        found = summary["trainable_parameters"][name], summary["total_parameters"][name]
        assert found == expected


def test_without_unlabelled_text(tmp_path, bert):
    notes = Notes()
    summary = train(
        make_settings(bert), lambda: make_tables(unlabeled=0), tmp_path / "run", display=notes
    )
    assert notes.warned == [
        "no unlabelled text: propagation left out of teacher",
        "no unlabelled text: prediction_distillation, representation_distillation, mutual left out"
        " of students",
    ]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert all(notice in log for notice in notes.warned)
    assert summary["rows"] == {"labeled": 12}
    assert set(losses(tmp_path / "run")[0]["losses"]) == {
        "teacher.supervised",
        "student1.supervised",
        "student2.supervised",
    }
    assert "training texts" in summary["selection"]["criterion"]


@pytest.mark.parametrize(
    ("settings", "learners", "criterion"),
    [
        (["cohort.teacher=false"], ["student1", "student2"], "agreement"),
        (["cohort.students=1"], ["teacher", "student1"], "the only student"),
        (["cohort.students=0"], ["teacher"], "the only learner"),
        (["cohort.students=1", "cohort.teacher=false"], ["student1"], "the only student"),
    ],
)
def test_smaller_cohorts(tmp_path, bert, settings, learners, criterion):
    config = make_settings(bert, *settings, "training.steps=2", recipe="supervised")
    summary = train(config, make_tables, tmp_path / "run")
    assert list(summary["layer_maps"]) == learners
    assert criterion in summary["selection"]["criterion"]
    assert summary["selection"]["labels_used"] == 0
    assert summary["teacher"] == ("teacher" if "teacher" in learners else None)


def test_validation_labels_choose_and_monitor_labels_do_not(tmp_path, bert):
    tables = make_tables(validation=3)
    without = dataclasses.replace(tables, validation=None)
    config = make_settings(bert)
    plain = train(config, lambda: without, tmp_path / "plain")
    watched = train(config, lambda: without, tmp_path / "watched", monitor=tables.validation)
    chosen = train(config, lambda: tables, tmp_path / "chosen")

    clock = {"seconds": 0}
    assert watched | clock == plain | clock
    assert plain["selection"]["labels_used"] == 0
    assert "agreement with the cohort on 30 unlabelled texts" in plain["selection"]["criterion"]
    assert chosen["selection"]["labels_used"] == 9
    assert chosen["weights_sha256"] == plain["weights_sha256"]  # labels choose, they do not train

    rows = losses(tmp_path / "watched")
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert [row["step"] for row in evaluations] == [2, 4, 6]
    assert set(evaluations[0]["accuracy"]) == {"teacher", "student1", "student2"}
    assert [row for row in rows if row["kind"] == "training"] == losses(tmp_path / "plain")


def test_warnings_about_the_texts(tmp_path, bert):
    notes = Notes()
    tables = make_tables(validation=1)
    long = ["iron " * 40, "qwert zuiop asdf", *tables.unlabeled.texts[:3]]
    tables = TrainingTables(
        table_from_lists([*tables.labeled.texts, long[0]], [*tables.labeled.labels, 1], "train"),
        table_from_lists([*long, "", tables.validation.texts[0]], source="pool"),
        tables.validation,
    )
    config = make_settings(bert, "training.steps=1")
    summary = train(config, lambda: tables, tmp_path / "run", display=notes)
    text = "\n".join(notes.warned)
    assert "pool: 1 empty texts left out" in text
    assert "1 texts of validation are also among the unlabelled texts of pool" in text
    assert "pool: 1 of 6 texts are longer than 16 tokens" in text
    assert "train: 1 of 13 texts are longer" in text
    assert summary["truncated"] == {"labeled": 1, "unlabeled": 1, "validation": 0}


def test_starting_from_an_earlier_run(tmp_path, bert):
    first = train(make_settings(bert), make_tables, tmp_path / "first")
    frozen = [
        f"phases.{phase}.{rate}=0"
        for phase in ("preparation", "teacher", "students")
        for rate in ("learning_rate", "head_learning_rate")
    ]
    config = make_settings(bert, *frozen, "training.steps=4")
    again = train(config, make_tables, tmp_path / "again", init=tmp_path / "first")
    assert again["weights_sha256"] == first["weights_sha256"]
    inputs = tomllib.loads((tmp_path / "again" / "config.toml").read_text())["inputs"]
    assert inputs["init"]["weights_sha256"] == first["weights_sha256"]


def test_runs_that_cannot_be_started_from(tmp_path, bert, tiny_modernbert_folder):
    first = tmp_path / "first"
    train(make_settings(bert, "training.steps=1"), make_tables, first)

    def refuse(expected, *settings, tables=make_tables, folder=bert, init=first):
        with pytest.raises(RunError, match=expected) as error:
            train(make_settings(folder, *settings), tables, tmp_path / "next", init=init)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "next").exists()

    refuse("not a run folder", init=tmp_path / "no")
    refuse("other layer maps", "cohort.layer_map=stride")
    refuse("other layer maps", "cohort.students=0")
    refuse("other backbone", folder=tiny_modernbert_folder)
    refuse("cannot start from", "cohort.student_peft=head")
    words = make_tables()
    words = TrainingTables(
        table_from_lists(words.labeled.texts, [f"class {i}" for i in words.labeled.labels])
    )
    refuse("other classes", tables=lambda: words)
    path = first / "learners.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    refuse("learners.safetensors is damaged")
