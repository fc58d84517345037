"""`train`: from tables to a run folder."""

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from nanonet.core.config import make_config, read_recipe, recipe_names
from nanonet.core.errors import BackboneError, ConfigError, DataError, RunError
from nanonet.data.readers import table_from_lists
from nanonet.models.encoders import BertEncoder
from nanonet.models.peft import PEFT, PeftMethod
from nanonet.training.checkpoint import read_tensors
from nanonet.training.inputs import TrainingTables
from nanonet.training.plan import with_enough_steps, with_enough_unlabeled
from nanonet.training.run_folder import RunFolder, weights_sha256
from nanonet.training.train import train
from test_peft import counts
from tiny import AT_ONCE, make_settings, make_tables

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


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["cohort.students=1"], "mutual needs 2 students or more"),
        (["cohort.teacher=false"], "needs a teacher, but cohort.teacher is false"),
        (["cohort.teacher=false", "cohort.students=0"], "nobody|nothing to learn"),
        (["phases.students.stop=0.3"], "'student1' nothing to learn"),
        (["phases.students.start=1"], r"students.start is 1.0, but must be less than .*stop=1.0"),
        (["phases.teacher.stop=0.25"], r"teacher.start is 0.25, .*less than phases.teacher.stop"),
        (
            ["cohort.students=0", "phases.teacher.objectives.feedback.weight=0.1"],
            "feedback needs 1 students or more",
        ),
        (["phases.students.objectives.mutul.weight=1"], "did you mean 'mutual'"),
        (["cohort.student_peft=bitfi"], "did you mean 'bitfit'"),
        (["cohort.student_layers=5"], "the backbone has 4 layers"),
        (["cohort.layer_map=spred"], "did you mean 'spread'"),
        (["data.max_length=65"], "positions for 64 tokens"),
        (["training.device=cuda:99"], "not available"),
        (["cohort.layer_map=[[1, 5], [2, 3]]"], r"student 1 is \[1, 5\].* from 1 to 4; take fewer"),
        (["cohort.layer_map=[[1, 2], [0, 3]]"], r"student 2 is \[0, 3\].* from 1 to 4; take fewer"),
        (["cohort.layer_map=[[2, 1], [2, 3]]"], r"student 1 is \[2, 1\]: layers must increase"),
        (["cohort.layer_map=[[1, 2]]"], "lists 1 students, but cohort.students is 2"),
        (["cohort.students=4"], r"layer map of student 3 is \[0, 4\].*take fewer students"),
        (
            ["cohort.students=3", "cohort.layer_map=block"],
            "gives 3 students only 2 distinct views .*take fewer students, or list the maps",
        ),
        (["cohort.layer_map=[[1, 2], [1, 2]]"], "gives 2 students only 1 distinct views"),
        (
            ["cohort.students=1"],
            "set phases.students.objectives.mutual.weight=0 or cohort.students=2",
        ),
        (
            ["cohort.student_peft=lora", "lora.targets=['quary']"],
            r"lora.targets \['quary'\] match no linear map.*: dense, key, query, value .*leave",
        ),
        (["cohort.teacher_peft=lora", "lora.targets=['quary']"], "lora.targets .* match no linear"),
        (
            ["views.learners.studnet1.token_cutoff=0.1"],
            r"views.learners.studnet1 names no learner .did you mean 'student1'.*teacher, student1",
        ),
        (["cohort.students=1", "views.learners.student2.shuffle=1"], "student2 names no learner"),
        (
            ["views.learners.student1.tokn_cutoff=0.1"],
            "student1.tokn_cutoff' .did you mean 'token_",
        ),
        (["views.learners.student1.dropout=1"], "'views.learners.student1.dropout' is 1.0"),
        (["warmup.steps=5", "warmup.peft=head"], "nothing to learn: set warmup.steps=0"),
        (
            ["warmup.steps=5", "warmup.objectives.representation_distillation.weight=0"],
            "nothing to learn: set warmup.steps=0",
        ),
        (
            ["warmup.steps=5", "warmup.objectives.supervised.weight=1"],
            "objectives.supervised cannot be learnt before .*use representation_distillation",
        ),
        (["warmup.steps=5", "warmup.objectives.mutual.weight=1"], "objectives.mutual cannot be"),
        (["warmup.steps=5", "warmup.objectives.mutul.weight=1"], "did you mean 'mutual'"),
        (["warmup.peft=ful"], "did you mean 'full'"),
        (
            [
                "cohort.student_peft=head",
                *(
                    f"phases.students.objectives.{name}.weight=0"
                    for name in ("supervised", "mutual", "prediction_distillation")
                ),
            ],
            "phases.students leaves student1 nothing to train: representation_distillation do not"
            " reach the head; set cohort.student_peft=bitfit, or the weight",
        ),
        (
            ["warmup.steps=5", "warmup.peft=lora", "lora.targets=['quary']"],
            r"lora.targets \['quary'\] match no linear map",
        ),
    ],
)
def test_contradictions_are_refused_before_data_is_read(tmp_path, bert, settings, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        train(make_settings(bert, *settings), unread, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "learner"),
    [
        ("views.adversarial=1", "student1"),
        ("views.feature_cutoff=0.1", "student1"),
        ("views.learners.teacher.adversarial=1", "teacher"),
        ("views.learners.student2.feature_cutoff=0.1", "student2"),
    ],
)
def test_views_that_a_backbone_has_no_access_for(tmp_path, bert, monkeypatch, setting, learner):
    monkeypatch.setattr(BertEncoder, "has_embedding_output", False)
    train(make_settings(bert, "views.shuffle=0.1", "training.steps=1"), make_tables, tmp_path / "a")
    expected = f"the view of {learner} changes the embedding output.*set views.adversarial=0 and"
    with pytest.raises(ConfigError, match=expected) as error:
        train(make_settings(bert, setting), unread, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("learner", ["teacher", "student"])
def test_a_method_that_finds_nothing_to_train_is_refused(tmp_path, bert, monkeypatch, learner):
    class Nothing(PeftMethod):
        """What layernorm would be in an encoder without one."""

        @staticmethod
        def apply(encoder, lora):
            return []

    monkeypatch.setitem(PEFT._entries, "nothing", Nothing)
    config = make_settings(bert, f"cohort.{learner}_peft=nothing")
    with pytest.raises(ConfigError, match=r"'nothing' finds no parameter to train .*use another"):
        train(config, unread, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_anything_to_learn_is_refused_before_data_is_read(tmp_path, bert):
    nothing = "phases.teacher.objectives.supervised.weight=0"
    config = make_settings(bert, nothing, recipe=AT_ONCE)
    with pytest.raises(ConfigError, match="'teacher' nothing to learn"):
        train(config, unread, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_backbone_is_refused_before_data_is_read(tmp_path):
    with pytest.raises(BackboneError, match="does not exist"):
        train(make_settings(tmp_path / "no"), unread, tmp_path / "run")


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


def test_a_folder_in_the_way(tmp_path, bert):
    out = tmp_path / "run"
    config = make_settings(bert, "training.steps=2")
    train(config, make_tables, out)
    before = contents(out)
    with pytest.raises(RunError, match=r"--resume.*--overwrite.*--out"):
        train(config, unread, out)
    assert contents(out) == before
    other = make_settings(bert, "training.steps=3", "seed=5")
    assert train(other, make_tables, out, mode="overwrite")["steps"] == 3
    assert RunFolder(out).read_config()[0] == other
    (tmp_path / "file").write_text("x")
    for mode in ("new", "resume", "overwrite"):
        with pytest.raises(RunError, match="file"):
            train(config, unread, tmp_path / "file", mode=mode)
    (tmp_path / "empty").mkdir()
    assert train(config, make_tables, tmp_path / "empty")["finished"]


@pytest.mark.parametrize(
    "broken",
    [
        lambda: (_ for _ in ()).throw(DataError("train.csv, line 3: no label")),
        lambda: TrainingTables(table_from_lists(["iron", "tin"], [1, 1])),
        lambda: TrainingTables(table_from_lists(["iron"])),
        lambda: TrainingTables(
            table_from_lists(["iron", "lake"], [0, 1]), None, table_from_lists(["sea"], [2])
        ),
    ],
)
@pytest.mark.parametrize("mode", ["overwrite", "new"])
def test_bad_data_changes_nothing_on_disk(tmp_path, bert, broken, mode):
    out = tmp_path / "run"
    if mode == "overwrite":
        train(make_settings(bert, "training.steps=2"), make_tables, out)
    before = contents(tmp_path)
    with pytest.raises(DataError) as error:
        train(make_settings(bert), broken, out, mode=mode)
    assert error.value.exit_code != 0
    assert contents(tmp_path) == before
    assert out.exists() == (mode == "overwrite")


def test_bad_monitor_labels_change_nothing_on_disk(tmp_path, bert):
    out = tmp_path / "run"
    train(make_settings(bert, "training.steps=2"), make_tables, out)
    before = contents(out)
    odd = table_from_lists(["iron"], [7])
    with pytest.raises(DataError, match="unknown label 7"):
        train(make_settings(bert), make_tables, out, mode="overwrite", monitor=odd)
    assert contents(out) == before


@pytest.mark.parametrize("mode", ["new", "resume", "overwrite"])
@pytest.mark.parametrize("name", ["thesis.txt", "config.toml"])
def test_a_foreign_folder_is_never_touched(tmp_path, bert, mode, name):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / name).write_text('title = "my site"\n')
    with pytest.raises(RunError):
        train(make_settings(bert), make_tables, folder, mode=mode)
    assert contents(folder) == {name: b'title = "my site"\n'}


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


# as many steps as the labels take


@pytest.mark.parametrize(
    ("labels", "classes", "batch", "steps"),
    [
        (40, 4, 16, 200),  # the recipe's
        (770, 77, 16, 578),  # 120 rows of each class
        (7700, 77, 16, 1444),  # three passes over all
        (770, 77, 64, 200),
    ],
)
def test_many_classes_or_labels_take_more_steps(labels, classes, batch, steps):
    config = make_config("nanonet", {"training": {"labeled_batch": batch}})
    assert with_enough_steps(config, labels, classes).training.steps == steps
    fixed = make_config("nanonet", {"training": {"steps": 7, "labeled_batch": batch}})
    assert with_enough_steps(fixed, labels, classes) == fixed  # who says how many gets so many


@pytest.mark.parametrize(
    ("tokens", "steps", "rows"),
    [
        (50.0, 200, 32),
        (202.0, 200, 32),  # long ones: no fewer
        (25.0, 200, 64),
        (13.5, 200, 119),
        (1.0, 200, 128),
        (15.0, 578, 37),  # many steps take their share
    ],
)
def test_short_texts_take_more_rows(tokens, steps, rows):
    config = make_config("nanonet", {"training": {"steps": steps}})
    assert with_enough_unlabeled(config, tokens).training.unlabeled_batch == rows
    fixed = make_config("nanonet", {"training": {"unlabeled_batch": 32}, "warmup": {"steps": 100}})
    assert with_enough_unlabeled(fixed, tokens) == fixed


@pytest.mark.parametrize(
    ("tokens", "rows", "steps"),
    [(50.0, 64, 100), (202.0, 64, 100), (20.0, 64, 250), (10.0, 64, 400), (10.0, 128, 250)],
)
def test_short_texts_take_more_steps_of_warm_up(tokens, rows, steps):
    config = make_config("nanonet", {"warmup": {"unlabeled_batch": rows}})
    assert with_enough_unlabeled(config, tokens).warmup.steps == steps
    fixed = make_config("nanonet", {"warmup": {"unlabeled_batch": rows, "steps": 0}})
    assert with_enough_unlabeled(fixed, tokens).warmup.steps == 0


@pytest.mark.parametrize("tokens", [4.0, 10.0, 13.5, 50.0])
def test_what_texts_take_is_settled_once(tokens):
    config = make_config("nanonet", {})
    settled = with_enough_unlabeled(with_enough_steps(config, 770, 77), tokens)
    assert with_enough_unlabeled(with_enough_steps(settled, 770, 77), tokens) == settled


def test_a_run_on_short_texts_is_resumed_with_its_own_settings(tmp_path, tiny_bert_folder):
    out = tmp_path / "run"
    more = ("training.more_rows=true", "training.more_steps=true", "training.unlabeled_batch=2")
    summary = train(make_settings(tiny_bert_folder, *more), make_tables, out)
    settled, _ = RunFolder(out).read_config()
    assert settled.training.unlabeled_batch == 8
    (out / "summary.json").unlink()
    assert train(settled, make_tables, out, mode="resume") == summary


def test_a_run_takes_the_rows_its_texts_allow_and_says_so(tmp_path, tiny_bert_folder):
    out, display = tmp_path / "run", Notes()
    settings = make_settings(tiny_bert_folder, "training.more_rows=true")
    summary = train(settings, make_tables, out, display=display)
    assert RunFolder(out).read_config()[0].training.unlabeled_batch == 32  # 4 x 8
    (out / "summary.json").unlink()
    assert train(settings, make_tables, out, mode="resume") == summary


def test_a_run_takes_the_steps_its_labels_ask_for_and_is_resumed_so(tmp_path, tiny_bert_folder):
    out, tables = tmp_path / "run", make_tables()
    more = ("training.more_steps=true", "training.labeled_batch=90")
    config = make_settings(tiny_bert_folder, "training.steps=2", *more)
    summary = train(config, lambda: tables, out)
    assert (summary["steps"], summary["finished"]) == (4, True)  # 3 classes * 120 rows / 90
    assert RunFolder(out).read_config()[0].training.steps == 4
    (out / "summary.json").unlink()
    assert train(config, lambda: tables, out, mode="resume")["steps"] == 4
    (out / "summary.json").unlink()
    other = make_settings(tiny_bert_folder, "training.steps=7", "training.labeled_batch=90")
    with pytest.raises(RunError, match=r"training\.steps=4, not 7"):
        train(other, lambda: tables, out, mode="resume")
    larger = make_tables(labeled=45)  # 135 labels: five steps
    with pytest.raises(RunError, match="labeled differs"):
        train(config, lambda: larger, out, mode="resume")
