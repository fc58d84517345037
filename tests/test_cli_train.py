"""`nanonet train`: resume, overwrite, seeds, time limits, settings."""

import json
import shutil

import pytest

from runs import config_of, refuse, succeed
from tiny import WINDOW_FLAGS


def test_resume_alone_reads_files_and_settings_from_the_run(train_arguments, run_folder, tmp_path):
    """A run without its outcome and its last checkpoint ends as the uninterrupted one did."""
    out = shutil.copytree(run_folder, tmp_path / "run")
    for name in ("summary.json", "learners.safetensors"):
        (out / name).unlink()
    checkpoints = sorted((out / "checkpoints").glob("step-*"))
    assert [c.name for c in checkpoints] == ["step-000006", "step-000012"]
    shutil.rmtree(checkpoints[-1])
    outcome = succeed("train", "--resume", "--out", out)
    assert "step 10/12" in outcome.err
    for name in ("learners.safetensors", "labels.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (run_folder / name).read_bytes(), name


def test_resume_alone_of_another_recipe_with_init(train_arguments, run_folder, tmp_path):
    out = tmp_path / "run"
    init = ["--init", run_folder, "--recipe", "supervised"]
    phase = ["--set", "phases.all.learning_rate=0.02"]
    succeed(*train_arguments, *init, *phase, "--out", out)
    (out / "summary.json").unlink()
    succeed("train", "--resume", *phase, "--out", out)
    assert config_of(out)["recipe"] == "supervised"
    assert config_of(out)["inputs"]["init"]["source"] == str(run_folder)


def test_resume_of_a_finished_run_changes_nothing(run_folder):
    before = {f: f.stat().st_mtime_ns for f in run_folder.rglob("*")}
    assert "finished already" in succeed("train", "--resume", "--out", run_folder).err
    assert {f: f.stat().st_mtime_ns for f in run_folder.rglob("*")} == before


def test_resume_refuses_other_settings(run_folder, tmp_path):
    out = shutil.copytree(run_folder, tmp_path / "run")
    (out / "summary.json").unlink()
    refuse("train", "--resume", "--seed", 5, "--out", out, parts=["seed=0", "5", "--overwrite"])


def test_resume_of_nothing(train_arguments, tmp_path):
    refuse("train", "--resume", "--out", tmp_path / "no", parts=["no is not a run folder"])
    assert not (tmp_path / "no").exists()


def test_an_existing_run_is_refused_and_overwritten_on_request(train_arguments, tmp_path):
    out = tmp_path / "run"
    succeed(*train_arguments, "--out", out, "--quiet")
    refuse(*train_arguments, "--out", out, parts=[f"{out} exists", "--resume", "--overwrite"])
    (out / "marker").write_text("x")
    succeed(*train_arguments, "--out", out, "--overwrite", "--seed", 3)
    assert not (out / "marker").exists()
    assert config_of(out)["seed"] == 3


def test_overwrite_spares_what_is_no_run(train_arguments, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    refuse(*train_arguments, "--out", tmp_path, "--overwrite", parts=["not a run folder"])
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_one_seed_gives_one_result(train_arguments, run_folder, tmp_path):
    hashes = [json.loads((run_folder / "summary.json").read_text())["weights_sha256"]]
    for seed in (0, 1):
        succeed(
            *train_arguments,
            *WINDOW_FLAGS,
            "--seed",
            seed,
            "--quiet",
            "--out",
            tmp_path / str(seed),
        )
        summary = json.loads((tmp_path / str(seed) / "summary.json").read_text())
        hashes.append(summary["weights_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_quiet_shows_nothing_but_warnings(train_arguments, tmp_path):
    calm = ("--set", "guard.every=0")  # which warns of learners as random as these
    outcome = succeed(*train_arguments, *calm, "--quiet", "--out", tmp_path / "run")
    assert outcome.out == ""
    assert outcome.err == ""


def test_max_minutes_stops_and_leaves_a_usable_run(train_arguments, corpus, tmp_path):
    out = tmp_path / "run"
    outcome = succeed(*train_arguments, "--max-minutes", 1e-6, "--out", out)
    assert "continue with --resume" in outcome.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"] is False
    assert summary["steps"] < 12
    succeed("evaluate", out, "--data", corpus / "test.csv")
    succeed("train", "--resume", "--max-minutes", 0, "--out", out)
    assert json.loads((out / "summary.json").read_text())["finished"] is True


SETTABLE = {
    "seed": "3",
    "data.text_column": "body",
    "backbone.pooling": "cls",
    "head.scale": "2.5",
    "cohort.layer_map": "[[1, 4], [2, 3]]",
    "views.token_cutoff": "0.2",
    "training.log_every": "7",
    "phases.students.learning_rate": "0.001",
    "phases.teacher.objectives.supervised.weight": "0.5",
    "phases.students.objectives.mutual.distance": "mse",
}


def test_set_reaches_every_level(monkeypatch, tmp_path):
    import nanonet.training.train as module

    seen = []
    monkeypatch.setattr(module, "train", lambda config, *a, **k: seen.append(config))
    sets = [part for k, v in SETTABLE.items() for part in ("--set", f"{k}={v}")]
    succeed("train", "--labeled", "x.csv", *sets, "--out", tmp_path / "r")
    (config,) = seen
    assert config.seed == 3
    assert config.data.text_column == "body"
    assert config.backbone.pooling == "cls"
    assert config.head.scale == 2.5
    assert config.cohort.layer_map == [[1, 4], [2, 3]]
    assert config.views.token_cutoff == 0.2
    assert config.training.log_every == 7
    assert config.phases["students"].learning_rate == 0.001
    assert config.phases["teacher"].objectives["supervised"]["weight"] == 0.5
    assert config.phases["students"].objectives["mutual"]["distance"] == "mse"


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("training.step=5", ["unknown key 'training.step'", "did you mean 'steps'"]),
        ("trainig.steps=5", ["unknown key 'trainig'", "did you mean 'training'"]),
        ("phases.student.learning_rate=1", ["phases.student", "did you mean 'students'"]),
        ("training.steps=0", ["training.steps", "at least 1"]),
        ("training.steps=many", ["training.steps", "int", "many"]),
        ("training.steps", ["--set 'training.steps'", "key=value"]),
        ("cohort.layer_map=spred", ["unknown layer map 'spred'", "did you mean 'spread'"]),
        ("cohort.teacher_peft=bitfits", ["bitfits", "did you mean 'bitfit'"]),
        ("phases.students.objectives.mutal.weight=1", ["mutal", "did you mean 'mutual'"]),
        ("phases.students.objectives.mutual.wight=1", ["wight", "did you mean 'weight'"]),
        ("task=translation", ["task", "translation", "classification"]),
    ],
)
def test_unknown_settings_are_refused(train_arguments, tmp_path, setting, parts):
    out = tmp_path / "run"
    refuse(*train_arguments, "--set", setting, "--out", out, parts=parts, status=2)
    assert not out.exists()
