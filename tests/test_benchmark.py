"""The benchmark: suites, ablation, cells in processes of their own, tables."""

import json
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

from nanonet.benchmark import memory
from nanonet.benchmark.runner import Cell, duration, error_of
from nanonet.data.checks import normalize_text
from nanonet.data.readers import Columns, read_table
from nanonet.data.writers import write_table
from runs import nanonet, refuse, succeed
from tiny import make_texts

DEPTH = 6  # layers of MiniLM
PNG = b"\x89PNG\r\n\x1a\n"
SUITE = """
[settings]
backbone.name = "{backbone}"
data.max_length = 32
cohort.student_layers = 2
warmup.steps = 0
training = {{ steps = 2, labeled_batch = 4, unlabeled_batch = 4, precision = "fp32" }}

[datasets.things]
train = "train.csv"
test = "test.csv"
exclude = "validation.csv"
labeled_per_class = 2

[run]
draws = 2

[methods.nanonet]

[methods.words]
kind = "tfidf"
ngrams = 1
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


# a suite from end to end


def test_each_cell_has_its_figures(finished):
    out, _, _ = finished
    results = results_of(out)
    cells = results["cells"]
    assert results["failed"] == []
    assert sorted((c["method"], c["draw"]) for c in cells) == [
        (method, draw) for method in ("nanonet", "words") for draw in (0, 1)
    ]
    for cell in cells:
        assert 0 <= cell["accuracy"] <= 1
        assert cell["labels_used_to_choose"] == 0
        assert cell["wall_seconds"] > cell["training_seconds"] > 0
        memory_mb = cell["memory"]
        assert memory_mb["peak_mb"] >= memory_mb["loaded_mb"] > 50
        assert 0 <= memory_mb["above_loaded_mb"] < memory_mb["peak_mb"]
        for learner, trained in cell["trainable_parameters"].items():
            assert cell["stored_bytes"][learner] == 4 * trained  # 32 bits
        assert cell["hardware"]["threads"] >= 1
    for cell in (c for c in cells if c["method"] == "nanonet"):
        assert cell["learners"][cell["selected"]] == cell["accuracy"]
        assert set(cell["learners"]) == {"teacher", "student1", "student2"}
        for learner, trained in cell["trainable_parameters"].items():
            assert trained < cell["total_parameters"][learner]
        assert cell["plan"]["config"]["training"]["steps"] == cell["steps"] == 2
        assert cell["unlabeled_batch"] == 4
        assert 0 <= cell["ece"] <= 1


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
    assert "4/4  things words draw 1 seed 0: accuracy 0." in progress
    assert "3 left" in progress
    assert "none left" in progress
    assert "things" in said
    table = (out / "table.md").read_text()
    for part in (
        "## things",
        "| nanonet | 0.",
        "| words | 0.",
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
    other = changed(suite, tmp_path, "ngrams = 1", "ngrams = 2")
    command = ["benchmark", other, "--out", out, "--draws", 1, "--only", "w*"]
    outcome = succeed(*command)
    assert "1 cells: 0 done already, 1 to run" in outcome.err
    folder = out / "cells" / "words" / "things" / "draw-0-seed-0"
    assert [path.parent for path, at in stamps(out).items() if at != before[path]] == [folder]
    cells = results_of(out)["cells"]
    assert [(c["method"], c["draw"]) for c in cells] == [("nanonet", 0), ("words", 0)]


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
    for path in (out / "cells" / "nanonet").rglob("result.json"):
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
        (
            "[methods.nanonet]",
            "[methods.nanonet]\nsettings.phases.students.objectives.mutal.weight = 0",
            ["methods.nanonet", "mutal", "mean 'mutual'"],
            2,
        ),
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


def test_a_foreign_file_that_is_not_there(suite, tmp_path):
    path = changed(
        suite, tmp_path, "labeled_per_class = 2", 'labeled_per_class = 2\nforeign = "x.csv"'
    )
    refuse("benchmark", path, "--out", tmp_path / "out", parts=["datasets.things.foreign", "x.csv"])


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
        (["--set", "task=multilabel"], ["methods.nanonet", "compares classifiers"]),
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


def test_table_of_a_real_benchmark_follows_from_its_results(finished):
    out, _, _ = finished
    cells = results_of(out)["cells"]
    of = {m: [c for c in cells if c["method"] == m] for m in ("nanonet", "words")}
    pairs = [b["accuracy"] - a["accuracy"] for a, b in zip(of["nanonet"], of["words"], strict=True)]
    values = [c["accuracy"] for c in of["words"]]
    line = next(
        line for line in (out / "table.md").read_text().splitlines() if line.startswith("| words |")
    )
    columns = [part.strip() for part in line.split("|")]
    assert columns[2] == f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
    assert columns[3] == f"{min(values):.3f}"
    assert columns[9].startswith(f"{statistics.mean(pairs):+.3f} (")


# the ablation


def test_an_ablation_end_to_end(suite, tmp_path):
    out = tmp_path / "out"
    only = ["--only", "layers-3", "--draws", 1]
    one = ["--set", "views.learners.student2.shuffle=0.1"]  # of a learner that some lack
    outcome = succeed("benchmark", suite, "--out", out, "--ablate", *only, *one, "--keep-runs")
    assert "[methods] is not used with --ablate" in outcome.err
    assert "variant students-1 left out: views.learners.student2 names no learner" in outcome.err
    results = results_of(out)
    assert results["ablated_recipe"] == "nanonet"
    assert [c["method"] for c in results["cells"]] == ["layers-3"]
    assert results["cells"][0]["layer_maps"]["student1"] == [2, 3, 4]
    assert (out / "cells/layers-3/things/draw-0-seed-0/run/summary.json").is_file()
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
