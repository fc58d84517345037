"""The benchmark: suites, ablation, cells in processes of their own, tables."""

import copy
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from nanonet.benchmark import memory, stats
from nanonet.benchmark.ablation import VIEWS, WARMUP_PEFT, distinct_maps, offline_teacher, variants
from nanonet.benchmark.chart import draw_chart
from nanonet.benchmark.draws import Dataset, draw, read_dataset
from nanonet.benchmark.run import make_rows
from nanonet.benchmark.runner import Cell, duration, error_of
from nanonet.benchmark.suite import DatasetConfig
from nanonet.benchmark.table import about_data, markdown, show
from nanonet.core.config import make_config, merge, parse_set, read_recipe, recipe_names
from nanonet.core.errors import ConfigError, DataError
from nanonet.data.checks import normalize_text
from nanonet.data.readers import Columns, read_table
from nanonet.data.writers import write_table
from nanonet.models.layer_maps import layer_maps
from nanonet.models.peft import PEFT
from nanonet.training.plan import make_plan
from runs import nanonet, refuse, succeed
from tiny import make_texts

DEPTH = 6  # layers of MiniLM
PNG = b"\x89PNG\r\n\x1a\n"
SUITE = """
[settings]
backbone.name = "{backbone}"
data.max_length = 32
cohort.student_layers = 2
training = {{ steps = 2, labeled_batch = 4, unlabeled_batch = 4, precision = "fp32" }}

[datasets.things]
train = "train.csv"
test = "test.csv"
exclude = "validation.csv"
labeled_per_class = 2

[run]
draws = 2

[methods.nanonet]

[methods.no-mutual]
settings.phases.students.objectives.mutual.weight = 0
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    """A suite of two methods and two draws. Read only."""
    folder = tmp_path_factory.mktemp("suite")
    texts, labels = make_texts(30)
    for name, rows in (
        ("train", slice(0, 70)),
        ("validation", slice(60, 66)),
        ("test", slice(66, 90)),  # four texts of the training file are among them
    ):
        write_table(folder / f"{name}.csv", {"text": texts[rows], "label": labels[rows]})
    path = folder / "suite.toml"
    path.write_text(SUITE.format(backbone=tiny_bert_folder))
    return path


@pytest.fixture(scope="module")
def finished(suite: Path) -> tuple[Path, str, str]:
    """A finished benchmark's folder, and what was said. Read only."""
    outcome = succeed("benchmark", suite, "--out", suite.parent / "out", "--jobs", 1)
    return suite.parent / "out", outcome.out, outcome.err


def changed(suite: Path, folder: Path, old: str, new: str) -> Path:
    """Return a copy of the suite with something else in its file."""
    text = suite.read_text()
    assert old in text
    for name in ("train", "validation", "test"):
        shutil.copy(suite.with_name(f"{name}.csv"), folder)
    path = folder / "suite.toml"
    path.write_text(text.replace(old, new, 1))
    return path


def results_of(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def stamps(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("result.json")}


# draws that are made hard


def dataset_of(folder: Path, **hardships: object) -> Dataset:
    """Return 40 texts of each of three classes, 10 of them for testing."""
    texts, labels = make_texts(40)
    write_table(folder / "train.csv", {"text": texts[30:], "label": labels[30:]})
    write_table(folder / "test.csv", {"text": texts[:30], "label": labels[:30]})
    strange = [*texts[:40], *(f"strange text {i}" for i in range(200))]
    write_table(folder / "strange.csv", {"text": strange})
    config = DatasetConfig("train.csv", "test.csv", labeled_per_class=5, **hardships)
    return read_dataset("things", config, folder)


def truth_of(dataset: Dataset) -> dict[str, int]:
    return dict(zip(dataset.train.texts, dataset.train.labels, strict=True))


def test_classes_grow_rarer_with_and_without_labels(tmp_path):
    dataset = dataset_of(tmp_path, imbalance=4.0)
    drawn = draw(dataset, 3)
    truth = truth_of(dataset)
    assert [truth[text] for text in drawn.labeled] == drawn.labels
    assert [drawn.labels.count(c) for c in range(3)] == [5, 2, 1]  # round(5 * 4**(-c/2))
    pool = [truth[text] for text in drawn.unlabeled]
    assert [pool.count(c) for c in range(3)] == [25, 12, 6]


def test_a_share_of_the_labels_is_wrong(tmp_path):
    dataset = dataset_of(tmp_path, wrong_labels=0.4)
    drawn, plain = draw(dataset, 3), draw(dataset_of(tmp_path), 3)
    truth = truth_of(dataset)
    assert (drawn.labeled, drawn.unlabeled) == (plain.labeled, plain.unlabeled)
    wrong = [truth[text] != label for text, label in zip(drawn.labeled, drawn.labels, strict=True)]
    assert sum(wrong) == 6  # of 15
    assert set(drawn.labels) == {0, 1, 2}
    assert drawn == draw(dataset, 3)
    all_wrong = draw(dataset_of(tmp_path, wrong_labels=0.9), 3)
    assert [a == b for a, b in zip(all_wrong.labels, plain.labels, strict=True)].count(True) == 3


@pytest.mark.parametrize(
    ("share", "own", "others"), [(0.5, 75, 75), (0.25, 75, 25), (0.8, 50, 200)]
)
def test_foreign_texts_are_mixed_in(tmp_path, share, own, others):
    """As many as the smaller source allows, and none that is a test text."""
    dataset = dataset_of(tmp_path, foreign="strange.csv", foreign_share=share)
    drawn = draw(dataset, 3)
    strange = [text.startswith("strange") for text in drawn.unlabeled]
    assert (strange.count(False), strange.count(True)) == (own, others)
    assert not set(drawn.unlabeled) & {*dataset.test.texts, *drawn.labeled}
    assert len(set(drawn.unlabeled)) == own + others
    assert 0 < sum(strange[: len(strange) // 2]) < sum(strange)


def test_foreign_texts_that_are_no_others(tmp_path):
    dataset = dataset_of(tmp_path, foreign="train.csv")
    with pytest.raises(DataError, match="75 texts and 0 foreign ones make no mixture"):
        draw(dataset, 3)


def test_what_is_hard_is_part_of_a_draws_identity_and_is_told(tmp_path):
    plain = dataset_of(tmp_path)
    assert "Made hard" not in about_data("things", plain.describe())
    hard = dataset_of(tmp_path, imbalance=3.0, wrong_labels=0.2, foreign="strange.csv")
    assert "foreign" not in plain.identity(0)
    keys = {"imbalance", "wrong_labels", "foreign", "foreign_share"}
    assert hard.identity(0).keys() - plain.identity(0).keys() == keys
    told = about_data("things", hard.describe())
    assert "the first class 3 times as common as the last, 20% of the labels wrong" in told
    assert "50% of the texts without labels from strange.csv" in told


def test_a_foreign_file_that_is_not_there(suite, tmp_path):
    path = changed(
        suite, tmp_path, "labeled_per_class = 2", 'labeled_per_class = 2\nforeign = "x.csv"'
    )
    refuse("benchmark", path, "--out", tmp_path / "out", parts=["datasets.things.foreign", "x.csv"])


# a suite from end to end


def test_each_cell_has_its_figures(finished):
    out, _, _ = finished
    results = results_of(out)
    cells = results["cells"]
    assert results["failed"] == []
    assert sorted((c["method"], c["draw"]) for c in cells) == [
        (method, draw) for method in ("nanonet", "no-mutual") for draw in (0, 1)
    ]
    for cell in cells:
        assert 0 <= cell["accuracy"] <= 1
        assert cell["learners"][cell["selected"]] == cell["accuracy"]
        assert set(cell["learners"]) == {"teacher", "student1", "student2"}
        assert cell["labels_used_to_choose"] == 0
        assert cell["wall_seconds"] > cell["training_seconds"] > 0
        memory_mb = cell["memory"]
        assert memory_mb["peak_mb"] >= memory_mb["loaded_mb"] > 50
        assert 0 <= memory_mb["above_loaded_mb"] < memory_mb["peak_mb"]
        for learner, trained in cell["trainable_parameters"].items():
            assert cell["stored_bytes"][learner] == 4 * trained  # 32 bits
            assert trained < cell["total_parameters"][learner]
        assert cell["hardware"]["threads"] >= 1
        assert cell["plan"]["config"]["training"]["steps"] == 2
    weights = {
        c["method"]: c["plan"]["config"]["phases"]["students"]["objectives"]["mutual"]["weight"]
        for c in cells
    }
    assert weights == {"nanonet": 0.5, "no-mutual": 0}


def test_draws_keep_test_and_excluded_texts_out(finished, suite):
    out, _, _ = finished
    kept_out = {
        normalize_text(text)
        for name in ("test.csv", "validation.csv")
        for text in read_table(suite.with_name(name), Columns(), labels="ignored").texts
    }
    labeled = []
    for seed in (0, 1):
        folder = out / "data" / "things" / f"draw-{seed}"
        table = read_table(folder / "labeled.parquet", Columns(), labels="required")
        pool = read_table(folder / "unlabeled.parquet", Columns(), labels="ignored")
        assert sorted(table.labels) == [0, 0, 1, 1, 2, 2]
        assert len(pool.texts) == 60 - 6
        texts = [*table.texts, *pool.texts]
        assert len(set(texts)) == len(texts)
        assert not kept_out & {normalize_text(text) for text in texts}
        labeled.append(set(table.texts))
    assert labeled[0] != labeled[1]


def test_files_and_messages(finished):
    out, said, progress = finished
    assert "4 cells: 0 done already, 4 to run, 1 at a time" in progress
    assert "4/4  things no-mutual draw 1 seed 0: accuracy 0." in progress
    assert "3 left" in progress
    assert "none left" in progress
    assert "things" in said
    table = (out / "table.md").read_text()
    for part in (
        "## things",
        "| nanonet | 0.",
        "| no-mutual | 0.",
        "2 labels for each of 3 classes, drawn from train.csv (70 rows, none of validation.csv)",
        "scored on 24 rows of test.csv",
        "Draws: 0 to 1; training seeds: 0; cells per method and data set: 2.",
        "Labels used to choose the shipped learner: 0.",
        "cpu, fp32",
        "torch ",
    ):
        assert part in table, part
    assert "Incomplete" not in table
    assert (out / "chart.png").read_bytes().startswith(PNG)
    assert not list((out / "cells").rglob("run"))  # deleted
    assert not list(out.rglob("*.tmp"))


def test_the_same_command_again_trains_nothing(finished, suite, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    before = stamps(out)
    (out / "table.md").unlink()
    outcome = succeed("benchmark", suite, "--out", out, "--jobs", 2)  # jobs do not matter
    assert "4 done already, 0 to run" in outcome.err
    assert stamps(out) == before
    assert (out / "table.md").read_text() == (finished[0] / "table.md").read_text()


def test_only_what_has_other_settings_runs_again(finished, suite, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    before = stamps(out)
    other = changed(suite, tmp_path, "mutual.weight = 0", "mutual.weight = 0.1")
    command = ["benchmark", other, "--out", out, "--draws", 1, "--only", "no-*"]
    outcome = succeed(*command, "--keep-runs")
    assert "1 cells: 0 done already, 1 to run" in outcome.err
    folder = out / "cells" / "no-mutual" / "things" / "draw-0-seed-0"
    assert [path.parent for path, at in stamps(out).items() if at != before[path]] == [folder]
    assert (folder / "run" / "summary.json").is_file()
    cells = results_of(out)["cells"]
    assert [(c["method"], c["draw"]) for c in cells] == [("nanonet", 0), ("no-mutual", 0)]


@pytest.mark.parametrize(
    ("key", "value"), [("kind", "other"), ("seed", 1), ("data", {}), ("plan", {"backbone": "f"})]
)
def test_a_result_of_something_else_does_not_count(finished, tmp_path, key, value):
    source = finished[0] / "cells" / "nanonet" / "things" / "draw-0-seed-0"
    folder = shutil.copytree(source, tmp_path / "cell")
    identity = json.loads((folder / "spec.json").read_text())["identity"]
    assert Cell(identity, {}, folder).result() is not None
    result = json.loads((folder / "result.json").read_text())
    new = {**result["plan"], **value} if key == "plan" else value
    (folder / "result.json").write_text(json.dumps({**result, key: new}))
    assert Cell(identity, {}, folder).result() is None
    (folder / "result.json").write_text("{")
    assert Cell(identity, {}, folder).result() is None


def test_a_setting_that_came_later_leaves_results_as_they_are(finished, suite, tmp_path):
    """A result from before a setting existed is that of the setting's default."""
    out = shutil.copytree(finished[0], tmp_path / "out")
    for path in (out / "cells").rglob("result.json"):
        result = json.loads(path.read_text())
        del result["plan"]["config"]["training"]["max_padding"]
        path.write_text(json.dumps(result))
    outcome = succeed("benchmark", suite, "--out", out)
    assert "4 done already, 0 to run" in outcome.err


def test_a_failed_cell_is_told_and_tried_again(finished, suite, tmp_path):
    """A file of a draw is damaged; the other cells are kept all the same."""
    out = shutil.copytree(finished[0], tmp_path / "out")
    shutil.rmtree(out / "cells" / "nanonet" / "things" / "draw-1-seed-0")
    (out / "data" / "things" / "draw-1" / "labeled.parquet").write_text("no more")
    for _ in range(2):
        outcome = nanonet("benchmark", suite, "--out", out)
        assert outcome.status == 1
        assert "4 cells: 3 done already, 1 to run" in outcome.err
        assert "1/1  things nanonet draw 1 seed 0: failed: " in outcome.err
        *_, told, last = outcome.err.splitlines()
        assert told.startswith("failed: things nanonet draw 1 seed 0: ")
        assert "labeled.parquet" in told
        assert last.startswith("error: 1 of 4 cells failed")
    results = results_of(out)
    assert len(results["cells"]) == 3
    assert [(c["method"], c["draw"]) for c in results["failed"]] == [("nanonet", 1)]
    assert "labeled.parquet" in results["failed"][0]["error"]
    assert "Incomplete on things, cells of 2: nanonet 1." in (out / "table.md").read_text()


def test_a_draw_that_lost_a_file_is_written_again(finished, suite, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    file = out / "data" / "things" / "draw-0" / "unlabeled.parquet"
    before = file.read_bytes()
    file.unlink()
    succeed("benchmark", suite, "--out", out)
    assert file.read_bytes() == before


def test_an_error_that_is_not_ours_is_one_line_too(finished, suite, tmp_path):
    """Whatever ends a process: its last line, or the signal."""
    log = tmp_path / "log.txt"
    log.write_text("Traceback:\n  somewhere\nMemoryError: no room\n\n")
    assert error_of(1, log) == "MemoryError: no room"
    log.write_text("")
    assert error_of(3, log) == "ended with status 3"
    assert error_of(-9, log) == "killed by signal 9: perhaps out of memory"
    assert error_of(-11, log) == "killed by signal 11"


def is_gone(group: int) -> bool:
    """Return whether no process of a group is left once the system has had time to reap them."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_keeps_what_is_finished(finished, suite, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    for folder in (out / "cells").rglob("draw-1-*"):
        shutil.rmtree(folder)
    command = [sys.executable, "-m", "nanonet", "benchmark", suite, "--out", out, "--jobs", 1]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list((out / "cells").rglob("draw-1-*/log.txt")):  # a cell is on its way
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    last = said.splitlines()[-1]
    # On a busy machine the cell may be done before the signal arrives.
    assert re.match(r"error: stopped with [12] of 2 cells left; finished ones are kept", last)
    assert is_gone(process.pid)
    assert len(stamps(out)) == len(results_of(out)["cells"]) == 2


# refusals


@pytest.mark.parametrize(
    ("old", "new", "parts", "status"),
    [
        ("[run]", "[rum]", ["suite.toml", "unknown key 'rum'", "did you mean 'run'"], 2),
        ("draws = 2", "draws = 0", ["key 'run.draws' is 0", "at least 1"], 2),
        ('test = "test.csv"\n', "", ["key 'datasets.things.test' is missing"], 2),
        ("[settings]", "[settings", ["suite.toml cannot be read"], 2),
        ("[methods.nanonet]", "[methods.'a/b']", ["methods.'a/b'", "becomes a folder"], 2),
        ("[methods.nanonet]", "[methods.a]\nkind = 'fasttext'", ["methods.a", "'fasttext'"], 2),
        ("[methods.nanonet]", "[methods.a]\nrecip = 'x'", ["'recip'", "mean 'recipe'"], 2),
        ("[methods.nanonet]", "[methods.a]\nrecipe = 'x'", ["methods.a: unknown recipe 'x'"], 2),
        ("mutual.weight", "mutal.weight", ["methods.no-mutual", "mutal", "mean 'mutual'"], 2),
        ("student_layers = 2", "student_layers = 5", ["the backbone has 4 layers"], 2),
        ("max_length = 32", "max_length = 99", ["positions for 64"], 2),
        ("[settings]", "[settings]\nseed = 1", ["settings.seed", "run.seeds"], 2),
        ('"validation.csv"', '"valid.csv"', ["datasets.things.exclude", "valid.csv", "no such"], 1),
        ('"train.csv"', '"trains.csv"', ["datasets.things.train", "mean 'train.csv'"], 1),
        ("per_class = 2", "per_class = 60", ["datasets.things", "usable rows"], 1),
        ("labeled_per_class = 2", 'text_column = "t"', ["datasets.things.train", "'t'"], 1),
    ],
)
def test_a_bad_suite_is_one_line_and_nothing_is_written(suite, tmp_path, old, new, parts, status):
    path = changed(suite, tmp_path, old, new)
    refuse("benchmark", path, "--out", tmp_path / "out", parts=parts, status=status)
    assert not (tmp_path / "out").exists()


def test_labels_of_the_test_file_that_the_training_file_lacks(suite, tmp_path):
    path = changed(suite, tmp_path, "[run]", "[run]")
    write_table(tmp_path / "test.csv", {"text": ["a", "b"], "label": [0, 9]})
    parts = ["datasets.things.test", "unknown label 9"]
    refuse("benchmark", path, "--out", tmp_path / "out", parts=parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--only", "nanonets"], ["--only nanonets", "did you mean 'nanonet'"]),
        (["--dataset", "thing"], ["--dataset thing matches no data set", "did you mean 'things'"]),
        (["--recipe", "supervised"], ["--recipe", "--ablate"]),
        (["--draws", "0"], ["--draws"]),
        (["--set", "training.step=2"], ["methods.nanonet", "did you mean 'steps'"]),
        (["--set", "seed=2"], ["'seed'", "run.seeds"]),
        (["--ablate", "--recipe", "nanonets"], ["nanonets", "did you mean 'nanonet'"]),
    ],
)
def test_bad_options(suite, tmp_path, arguments, parts):
    out = ["--out", tmp_path / "out"]
    arguments = [a for a in arguments if a]
    quiet = changed(suite, tmp_path, "[methods.nanonet]", "[methods.nanonet]")
    if "--ablate" in arguments:  # without the notice that [methods] is not used
        quiet.write_text(quiet.read_text().partition("[methods")[0])
    refuse("benchmark", quiet, *out, *arguments, parts=parts, status=2)
    assert not (tmp_path / "out").exists()


def test_no_suite_no_methods_no_folder_of_ours(suite, tmp_path):
    refuse("benchmark", tmp_path / "s.toml", "--out", tmp_path / "o", parts=["s.toml"], status=2)
    bare = changed(suite, tmp_path, "[methods.nanonet]", "")
    bare.write_text(bare.read_text().partition("[methods")[0])
    parts = ["there is no method", "--ablate"]
    refuse("benchmark", bare, "--out", tmp_path / "out", parts=parts, status=2)
    refuse("benchmark", suite, "--out", tmp_path, parts=["no benchmark's folder"])


# the table


def cell(method: str, draw: int, seed: int, shipped: float, **learners: float) -> dict:
    """Return the part of a result that the table reads; student1 is shipped."""
    learners = {"teacher": 0.8, "student1": shipped, **learners}
    return {
        "method": method,
        "dataset": "d",
        "draw": draw,
        "seed": seed,
        "accuracy": shipped,
        "learners": learners,
        "teacher": "teacher",
        "selected": "student1",
        "training_seconds": 10.0,
        "memory": {"peak_mb": 500.0, "above_loaded_mb": 100.0},
        "trainable_parameters": dict.fromkeys(learners, 5),
        "total_parameters": dict.fromkeys(learners, 1000),
        "stored_bytes": dict.fromkeys(learners, 20_000),
        "labels_used_to_choose": 0,
        "hardware": {"device": "cpu", "precision": "bf16", "threads": 1, "processor": "P"},
        "versions": {"nanonet": "0"},
        "date": "2026-01-01T00:00:00",
    }


def made_up_results() -> dict:
    cells = [
        cell("a", 0, 0, 0.70, student2=0.60),
        cell("a", 0, 1, 0.74, student2=0.64),
        cell("a", 1, 0, 0.60, student2=0.66),
        cell("a", 1, 1, 0.64, student2=0.68),
        cell("b", 0, 0, 0.71),
        cell("b", 1, 0, 0.64),
    ]
    about = {"labeled_per_class": 1, "classes": 2, "train": "t", "train_rows": 9, "exclude": None}
    return {
        "suite": "s.toml",
        "ablated_recipe": None,
        "reference": "a",
        "run": {"draws": 2, "seeds": 2},
        "datasets": {"d": {**about, "test": "e", "test_rows": 4}},
        "methods": [{"name": n, "group": ""} for n in ("a", "b", "c")],
        "cells": cells,
    }


def test_figures_of_the_table():
    a, b = make_rows(made_up_results())["d"]
    assert a.accuracy == stats.Spread(
        4, pytest.approx(0.67), pytest.approx(statistics.stdev([0.7, 0.74, 0.6, 0.64])), 0.6
    )
    assert (a.teacher, a.gap) == (pytest.approx(0.8), pytest.approx(0.13))
    assert a.best_student == pytest.approx((0.70 + 0.74 + 0.66 + 0.68) / 4)
    assert a.mean_student == pytest.approx((0.65 + 0.69 + 0.63 + 0.66) / 4)
    assert (a.difference, a.difference_error) == (None, None)
    assert (a.trainable_share, a.stored_kb) == (0.005, 20.0)
    # b stands beside a in the pairs (0, 0) and (1, 0)
    assert b.difference == pytest.approx((0.01 + 0.04) / 2)
    assert b.difference_error == pytest.approx(0.03 / math.sqrt(2) / math.sqrt(2))
    assert b.mean_student == pytest.approx((0.71 + 0.64) / 2)


def test_spread_over_draws_and_over_seeds_are_told_apart():
    a, b = make_rows(made_up_results())["d"]
    assert a.over_draws == pytest.approx(statistics.stdev([0.72, 0.62]))
    assert a.over_seeds == pytest.approx(0.04 / math.sqrt(2))  # of two figures 0.04 apart
    assert b.over_seeds is None
    assert b.over_draws == pytest.approx(0.07 / math.sqrt(2))
    singles = [0.7, 0.74, 0.6, 0.64, 0.6, 0.64, 0.66, 0.68]
    assert a.students.n == 8
    assert a.students.mean == pytest.approx(statistics.mean(singles))
    assert a.students.std == pytest.approx(statistics.stdev(singles))
    assert a.students.worst == 0.6
    variances = [0.04**2 / 2, 0.04**2 / 2, 0.04**2 / 2, 0.02**2 / 2]
    assert a.students_over_seeds == pytest.approx(math.sqrt(statistics.mean(variances)))


def test_the_table_in_markdown():
    results = made_up_results()
    text = markdown(results, make_rows(results))
    assert (
        "| a | 0.670 ± 0.062 | 0.600 | 0.800 | 0.695 / 0.657 | +0.130 |  | 10 | 500 (100)"
        " | 0.50% | 20 |" in text
    )
    assert "| b | 0.675 ± 0.049 | 0.640 |" in text
    assert "| +0.025 ± 0.015 |" in text
    assert "- Incomplete on d, cells of 4: b 2.\n- Without any cell on d: c.\n" in text
    assert "ingredient" not in text
    for method in results["methods"]:
        method["group"] = "teacher" if method["name"] == "b" else "reference"
    text = markdown(results, make_rows(results))
    assert "| ingredient | method |" in text
    assert "| teacher | b |" in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_narrow_terminal_leaves_columns_out(width):
    results = made_up_results()
    out = io.StringIO()
    rows = make_rows(results)
    show(results, rows, Console(file=out, width=width, color_system=None))
    lines = [line for line in out.getvalue().splitlines() if line[:1] in "┃│"]
    assert all(len(line) <= width for line in lines)
    assert "…" not in out.getvalue()
    assert "to reference" in lines[0]
    assert "0.675 ± 0.049" in out.getvalue()
    assert ("stored kB" in lines[0]) == (width == 200)


def test_a_warm_up_from_the_cache_is_told():
    results = made_up_results()
    assert "warm-ups" not in markdown(results, make_rows(results))
    results["cells"][1]["warmup"] = {"cached": True}
    assert "leaves out warm-ups" in markdown(results, make_rows(results))


def test_a_method_without_students_has_no_figures_of_them():
    results = made_up_results()
    alone = copy.deepcopy(results["cells"][:1])
    alone[0].update(learners={"teacher": 0.7}, selected="teacher")
    row = make_rows({**results, "cells": alone})["d"][0]
    assert (row.students, row.best_student, row.accuracy.std) == (None, None, None)
    assert "| a | 0.700 | 0.700 | 0.800 |" not in markdown(
        {**results, "cells": alone}, {"d": [row]}
    )


def test_table_of_a_real_benchmark_follows_from_its_results(finished):
    out, _, _ = finished
    cells = results_of(out)["cells"]
    of = {m: [c for c in cells if c["method"] == m] for m in ("nanonet", "no-mutual")}
    pairs = [
        b["accuracy"] - a["accuracy"] for a, b in zip(of["nanonet"], of["no-mutual"], strict=True)
    ]
    values = [c["accuracy"] for c in of["no-mutual"]]
    line = next(
        line
        for line in (out / "table.md").read_text().splitlines()
        if line.startswith("| no-mutual |")
    )
    columns = [part.strip() for part in line.split("|")]
    assert columns[2] == f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
    assert columns[3] == f"{min(values):.3f}"
    error = statistics.stdev(pairs) / math.sqrt(2)
    assert columns[7] == f"{statistics.mean(pairs):+.3f} ± {error:.3f}"


def test_the_chart_of_many_methods(tmp_path):
    results = made_up_results()
    results["methods"] = [{"name": f"method-{i}", "group": str(i // 3)} for i in range(30)]
    results["reference"] = "method-0"
    results["cells"] = [
        cell(f"method-{i}", draw, 0, 0.6 + 0.01 * i + 0.02 * draw)
        for i in range(30)
        for draw in (0, 1)
    ]
    rows = make_rows(results)
    draw_chart(tmp_path / "c.png", "title", rows, results["cells"], "method-0")
    assert (tmp_path / "c.png").read_bytes().startswith(PNG)


# the ablation


def tables_of(recipe: str, *assignments: str) -> dict:
    return merge(read_recipe(recipe), parse_set(assignments))


def names(recipe: str, *assignments: str) -> list[str]:
    return [v.name for v in variants(tables_of(recipe, *assignments), DEPTH)]


def config_of(recipe: str, name: str, *assignments: str):
    made = variants(tables_of(recipe, *assignments), DEPTH)
    overrides = next(v.overrides for v in made if v.name == name)
    return make_config(recipe, merge(parse_set(assignments), overrides))


def test_variants_of_the_method():
    found = names("nanonet")
    assert found[0] == "reference"
    assert len(set(found)) == len(found)
    wanted = [
        *("offline-teacher", "no-teacher", "feedback", "no-mutual", "no-ramp-up"),
        *("no-prediction-distillation", "no-representation-distillation", "no-propagation"),
        "no-token-cutoff",
        *(f"peft-{kind}" for kind in PEFT if kind != "bitfit"),
        *("students-1", "students-3", "students-4"),
        *(f"layers-{n}" for n in (1, 2, 4, 5, 6)),
    ]
    for name in wanted:
        assert name in found, name
    groups = [v.group for v in variants(tables_of("nanonet"), DEPTH)]
    runs = [g for i, g in enumerate(groups) if i == 0 or groups[i - 1] != g]
    assert len(set(runs)) == len(runs), "a group stands in one piece"


def test_variants_of_supervised_learning():
    """Nobody learns from anybody and nothing reads unlabelled text: little to take away."""
    found = names("supervised")
    assert found == [
        "reference",
        *(f"peft-{kind}" for kind in PEFT if kind != "bitfit"),
        *(f"layers-{n}" for n in (1, 2, 4, 5, 6)),
    ]


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize(("depth", "layers"), [(2, 1), (4, 2), (6, 3), (12, 4), (22, 11)])
def test_every_variant_can_be_planned(recipe, depth, layers):
    settings = parse_set(["cohort.layer_map=stride", f"cohort.student_layers={layers}"])
    # Views of single learners name learners that these variants do not have.
    left_out = {"psnet": ["no-teacher"], "disco": ["students-1", f"layers-{depth}"]}.get(recipe, [])
    for variant in variants(merge(read_recipe(recipe), settings), depth):
        config = make_config(recipe, merge(settings, variant.overrides))
        if variant.name in left_out:
            with pytest.raises(ConfigError, match=r"views\.learners\..* names no learner"):
                make_plan(config, has_unlabeled=True)
            continue
        make_plan(config, has_unlabeled=True)
        cohort = config.cohort
        layer_maps(cohort.layer_map, depth, cohort.student_layers, cohort.students)
        if variant.name != "reference":
            assert config != make_config(recipe, settings), variant.name


def test_warm_up_and_views_are_tried_where_there_is_unlabelled_text():
    found = names("nanonet")
    assert {*(f"warmup-{kind}" for kind in WARMUP_PEFT), "span-cutoff", "shuffle"} <= set(found)
    own, other = WARMUP_PEFT
    on = ["warmup.steps=50", f"warmup.peft={own}"]
    found = names("nanonet", *on)
    assert {"no-warmup", f"warmup-{other}"} <= set(found)
    assert f"warmup-{own}" not in found
    assert config_of("nanonet", f"warmup-{other}", *on).warmup.steps == 50


def test_what_is_off_is_switched_on_and_what_is_on_off():
    on = ["phases.teacher.objectives.feedback.weight=0.2", "views.token_cutoff=0"]
    on += ["phases.students.objectives.mutual.weight=0"]
    found = names("nanonet", *on)
    assert {"no-feedback", "token-cutoff"} <= set(found)
    assert not {"feedback", "no-token-cutoff", "no-mutual", "no-ramp-up"} & set(found)
    with_feedback = config_of("nanonet", "feedback").phases
    assert with_feedback["teacher"].objectives["supervised"]["weight"] == 0.8
    assert with_feedback["teacher"].objectives["feedback"]["weight"] == 0.2
    assert "feedback" not in with_feedback["preparation"].objectives  # nobody to give it yet
    without = config_of("nanonet", "no-feedback", *on).phases["teacher"].objectives
    assert (without["supervised"]["weight"], without["feedback"]["weight"]) == (1, 0)


def test_one_view_is_changed_at_a_time():
    for variant in variants(tables_of("nanonet"), DEPTH):
        if variant.group == "views":
            ((key, value),) = variant.overrides["views"].items()
            assert value == (0 if variant.name.startswith("no-") else VIEWS[key])


def test_views_of_single_students_are_switched_off_too():
    views = {v.name: config_of("disco", v.name).views for v in variants(tables_of("disco"), DEPTH)}
    reference = [views["reference"].of(f"student{k}") for k in (1, 2)]
    assert [(v.adversarial, v.token_cutoff) for v in reference] == [(5, 0), (0, 0.2)]
    for name, view in (("no-adversarial", "adversarial"), ("no-token-cutoff", "token_cutoff")):
        seen = [views[name].of(f"student{k}") for k in (1, 2)]
        assert seen == [dataclasses.replace(v, **{view: 0}) for v in reference]
    assert not {"adversarial", "token-cutoff"} & views.keys()
    assert views["shuffle"].of("student1").shuffle == VIEWS["shuffle"]


def test_without_a_teacher_only_students_learn():
    plan = make_plan(config_of("nanonet", "no-teacher"), has_unlabeled=True)
    assert [p.name for p in plan.phases] == ["students"]
    assert set(plan.phases[0].objectives) == {"supervised", "mutual"}
    assert not plan.needs_soft_labels


def test_the_last_thing_to_learn_from_is_never_taken():
    off = [f"phases.students.objectives.{n}.weight=0" for n in ("supervised", "mutual")]
    off += ["phases.students.objectives.representation_distillation.weight=0"]
    found = names("nanonet", *off)
    assert "no-prediction-distillation" not in found
    assert "no-teacher" not in found
    assert "no-propagation" in found


def test_offline_teacher_steps_as_often_as_before():
    config = make_config("nanonet", {})
    offline = config_of("nanonet", "offline-teacher")
    assert offline.training.steps == 350  # 200 of the teacher, then 150 of the students
    before, after = make_plan(config, True), make_plan(offline, True)
    windows = {p.name: p.window(350) for p in after.phases}
    assert windows["preparation"] == range(50)
    assert windows["teacher"] == range(50, 200)
    assert windows["students"] == range(200, 350)
    for old, new in zip(before.phases, after.phases, strict=True):
        assert len(old.window(200)) == len(new.window(350))
    assert round(offline.propagation.at * 350) == 50


@pytest.mark.parametrize("steps", [2, 3, 7, 33, 201, 1000])
@pytest.mark.parametrize("start", [0.1, 0.25, 1 / 3, 0.6])
def test_offline_teacher_at_any_length(steps, start):
    """Shares are rounded to steps as the plan rounds them, whatever the numbers."""
    settings = [f"training.steps={steps}", "phases.teacher.objectives.feedback.weight=0.2"]
    settings += [f"phases.{n}={start}" for n in ("preparation.stop", "teacher.start")]
    settings += [f"phases.students.start={start}", f"propagation.at={start}"]
    config = make_config("nanonet", parse_set(settings))
    offline = make_config("nanonet", merge(parse_set(settings), offline_teacher(config)))
    total = offline.training.steps
    before, after = make_plan(config, True), make_plan(offline, True)
    of_teacher = range(0)
    for old, new in zip(before.phases, after.phases, strict=True):
        assert len(old.window(steps)) == len(new.window(total))
        assert "feedback" not in new.objectives
        if new.name == "students":
            assert new.window(total).start == of_teacher.stop == steps
            assert new.window(total).stop == total
        else:
            of_teacher = new.window(total)
            assert of_teacher == old.window(steps)


def test_no_offline_teacher_where_there_is_none_to_make():
    done = ["phases.preparation.stop=0.25", "phases.teacher.stop=0.5", "phases.students.start=0.5"]
    assert "offline-teacher" not in names("nanonet", *done)
    assert "offline-teacher" not in names("nanonet", "cohort.students=0")
    assert offline_teacher(make_config("supervised", {})) is None


def test_rates_follow_the_peft_method():
    rates = {n: p.learning_rate for n, p in config_of("nanonet", "peft-full").phases.items()}
    assert rates == {"preparation": 1e-4, "teacher": 1e-4, "students": 2e-4}
    own = {n: p.learning_rate for n, p in make_config("nanonet", {}).phases.items()}
    kept = {n: p.learning_rate for n, p in config_of("nanonet", "peft-head").phases.items()}
    assert kept == own


def test_heads_alone_do_not_learn_in_phases_on_representations():
    plan = make_plan(config_of("psnet", "peft-head"), has_unlabeled=True)
    assert [phase.name for phase in plan.phases] == ["supervision", "teacher", "prediction"]


def test_number_of_students():
    one = make_plan(config_of("nanonet", "students-1"), has_unlabeled=True)
    assert [p.learners for p in one.phases if p.name == "students"] == [("student1",)]
    assert "mutual" not in one.phases[-1].objectives
    reference = layer_maps("spread", DEPTH, 3, 2)
    for count in (3, 4):
        cohort = config_of("nanonet", f"students-{count}").cohort
        maps = layer_maps(cohort.layer_map, DEPTH, cohort.student_layers, cohort.students)
        assert maps[:2] == reference
        assert all(len(m) == 3 and m[-1] == DEPTH for m in maps)


def test_layers_per_student():
    for layers in (1, 2, 4, 5):
        cohort = config_of("nanonet", f"layers-{layers}").cohort
        maps = layer_maps(cohort.layer_map, DEPTH, cohort.student_layers, cohort.students)
        assert len(maps) == 2
        assert all(len(m) == layers for m in maps)
        assert maps[0][-1] == DEPTH
    whole = config_of("nanonet", "layers-6")
    assert whole.cohort.layer_map == [[1, 2, 3, 4, 5, 6]]
    assert "mutual" not in make_plan(whole, has_unlabeled=True).phases[-1].objectives


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 12, 22])
def test_distinct_maps(depth):
    for layers in range(1, depth + 1):
        maps = distinct_maps(depth, layers, 4)
        assert maps[0] == tuple(math.ceil(i * depth / layers) for i in range(1, layers + 1))
        assert len(maps) == min(4, math.comb(depth, layers))
        assert layer_maps([list(m) for m in maps], depth, layers, len(maps)) == maps
        keeping = [m for m in maps if m[-1] == depth]
        assert maps[: len(keeping)] == keeping


@pytest.mark.parametrize("recipe", recipe_names())
def test_of_any_recipe_no_two_variants_are_the_same(recipe):
    made = variants(read_recipe(recipe), DEPTH)
    configs = [make_config(recipe, variant.overrides) for variant in made]
    assert len({variant.name for variant in made}) == len(made)
    for i, config in enumerate(configs):
        assert config not in configs[:i], made[i].name


def test_layer_maps_that_do_not_fit_the_backbone():
    with pytest.raises(ConfigError, match="the backbone has 2 layers"):
        variants(tables_of("nanonet"), 2)


def test_an_ablation_end_to_end(suite, tmp_path):
    out = tmp_path / "out"
    only = ["--only", "layers-3", "--draws", 1]
    one = ["--set", "views.learners.student2.shuffle=0.1"]  # of a learner that some lack
    outcome = succeed("benchmark", suite, "--out", out, "--ablate", *only, *one)
    assert "[methods] is not used with --ablate" in outcome.err
    assert "variant students-1 left out: views.learners.student2 names no learner" in outcome.err
    results = results_of(out)
    assert results["ablated_recipe"] == "nanonet"
    assert [c["method"] for c in results["cells"]] == ["layers-3"]
    assert results["cells"][0]["layer_maps"]["student1"] == [2, 3, 4]
    table = (out / "table.md").read_text()
    assert "# Ablation of the recipe nanonet" in table
    assert "| layers per student | layers-3 |" in table


# small parts


def test_memory_of_this_process():
    before = memory.resident_bytes()
    assert 0 < before <= memory.peak_bytes()
    block = bytearray(b"x" * 50_000_000)
    assert memory.peak_bytes() >= before + 40_000_000
    del block
    memory.reset_peak()
    assert memory.peak_bytes() >= memory.resident_bytes()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (130, "2 min"), (9000, "2.5 h")]
)
def test_duration(seconds, words):
    assert duration(seconds) == words
