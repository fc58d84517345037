import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest

import nanonet as package
from nanonet.core.config import recipe_names
from nanonet.data.readers import Columns, read_table
from nanonet.data.writers import write_table
from runs import FAST, config_of, nanonet, refuse, succeed

COMMAND = [sys.executable, "-m", "nanonet"]


def json_line(text: str) -> dict:
    assert text.count("\n") == 1
    return json.loads(text)


# train, evaluate, export, predict


def test_a_run_folder_holds_configuration_and_outcome(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["finished"] is True
    assert summary["steps"] == 12
    assert summary["classes"] == 3
    assert summary["selected"] in ("student1", "student2")
    assert config_of(run_folder)["training"]["steps"] == 12


def test_evaluate_prints_one_json_object_for_a_run_and_for_its_bundle(run_folder, bundle, corpus):
    test = corpus / "test.csv"
    of_run = json_line(succeed("evaluate", run_folder, "--data", test, "--json").out)
    known = ["accuracy", "macro_f1", "ece", "ece_uncalibrated", "coverage", "accuracy_covered"]
    known += ["min_confidence", "examples", "seconds"]
    assert list(of_run) == [*known, "learners"]
    assert of_run["coverage"] == 1.0
    assert of_run["examples"] == 30
    assert set(of_run["learners"]) == {"teacher", "student1", "student2"}
    selected = json.loads((run_folder / "summary.json").read_text())["selected"]
    assert of_run["learners"][selected] == of_run["accuracy"]

    of_bundle = json_line(succeed("evaluate", bundle, "--data", test, "--json").out)
    assert list(of_bundle) == known
    for key in ("accuracy", "macro_f1", "examples"):
        assert of_bundle[key] == of_run[key]


def test_evaluate_without_json_names_every_learner(run_folder, corpus):
    out = succeed("evaluate", run_folder, "--data", corpus / "test.csv").out
    assert out.startswith("accuracy  0.")
    for word in ("macro F1", "examples  30", "teacher", "student1", "student2"):
        assert word in out


def test_evaluate_warns_of_texts_that_training_saw(run_folder, corpus):
    outcome = succeed("evaluate", run_folder, "--data", corpus / "all.csv", "--json")
    json_line(outcome.out)  # warnings never stand on stdout
    assert "warning: 30 of 120 texts" in outcome.err
    assert "labelled training texts" in outcome.err
    assert "warning: 60 of 120 texts" in outcome.err


def test_predict_answers_texts_on_the_screen(bundle):
    out = succeed("predict", bundle, "old apple", "new iron").out
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[2] for line in lines] == ["old apple", "new iron"]
    for name, probability, _ in lines:
        assert name in ("fruit", "metal", "water")
        assert 1 / 3 <= float(probability) <= 1


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predict_keeps_rows_and_order(bundle, tmp_path, suffix):
    texts = ["river lake", "", "apple", "   ", "zinc " * 40, 'a, "b"\nc']
    write_table(tmp_path / f"in{suffix}", {"text": texts, "label": ["x"] * len(texts)})
    output = tmp_path / f"out{suffix}"
    succeed("predict", bundle, "--input", tmp_path / f"in{suffix}", "--output", output)
    table = read_table(output, Columns(), labels="optional", keep_empty=True)
    assert table.texts == texts
    assert set(table.labels) <= {0, 1, 2}
    assert table.names == [["fruit", "metal", "water"][label] for label in table.labels]
    one = succeed("predict", bundle, texts[0]).out
    assert one.startswith(table.names[0])


def test_predict_without_output_prints_json_lines(bundle, tmp_path):
    write_table(tmp_path / "in.csv", {"text": ["ö apple", "iron"]})
    out = succeed("predict", bundle, "--input", tmp_path / "in.csv").out
    rows = [json.loads(line) for line in out.splitlines()]
    columns = ["text", "label", "label_name", "probability", "abstained"]
    assert [list(row) for row in rows] == [columns] * 2
    assert [row["text"] for row in rows] == ["ö apple", "iron"]
    assert "ö" in out


def test_column_names_can_be_set(bundle, tmp_path):
    write_table(tmp_path / "in.csv", {"body": ["apple", "iron"], "kind": ["fruit", "metal"]})
    columns = ["--set", "data.text_column=body", "--set", "data.label_column=kind"]
    assert succeed("predict", bundle, "--input", tmp_path / "in.csv", *columns).out.count("\n") == 2
    out = succeed("evaluate", bundle, "--data", tmp_path / "in.csv", *columns, "--json").out
    assert json_line(out)["examples"] == 2


@pytest.mark.parametrize("bits", ["int8", "int8-static", "mixed", "int4"])
def test_fewer_bits_are_smaller_and_work(run_folder, bundle, corpus, tmp_path, bits):
    out = tmp_path / "small"
    test = corpus / "test.csv"
    said = succeed("export", run_folder, "--out", out, "--quantize", bits, "--data", test).out
    summary, heading, *steps, measured = said.splitlines()
    for part in (f"{out}: student", "3 classes", f"quantization {bits}", "differs from torch"):
        assert part in summary
    assert heading.split() == ["MB", "agreement", "accuracy"]
    assert [step.split()[0] for step in steps] == ["32", bits]
    assert measured == f"measured on 30 texts of {test}"
    assert (out / "model.onnx").stat().st_size < (bundle / "model.onnx").stat().st_size
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["quantization"] == bits
    full = json_line(succeed("evaluate", bundle, "--data", test, "--json").out)
    small = json_line(succeed("evaluate", out, "--data", test, "--json").out)
    first, last = manifest["metrics"]["steps"]
    assert first["accuracy"] == full["accuracy"]
    assert last["accuracy"] == pytest.approx(small["accuracy"], abs=0.07)
    assert last["agreement"] >= 0.8


def test_a_limit_of_agreement_is_kept(run_folder, tmp_path):
    out = tmp_path / "small"
    quantized = ("export", run_folder, "--out", out, "--quantize", "int8")
    refuse(*quantized, "--min-agreement", "1.01", parts=["--min-agreement"], status=2)
    with mock.patch("nanonet.export.model.quantize", spoil):
        refuse(*quantized, "--min-agreement", "0.9", parts=["as before", "nothing was written"])
        assert not out.exists()
        outcome = succeed(*quantized)
    assert "warning: " in outcome.err
    assert "of the answers are other ones than before" in outcome.err


def spoil(path, kind, feeds):
    """Set a model's weights to 0 where it should hold them in fewer bits."""
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.data_type == onnx.TensorProto.FLOAT and len(initializer.dims) == 2:
            zeros = np.zeros(tuple(initializer.dims), np.float32)
            initializer.CopyFrom(onnx.numpy_helper.from_array(zeros, initializer.name))
    onnx.save(model, path)


@pytest.mark.parametrize("value", ["0", "many", "1.5"])
def test_a_vocabulary_is_a_number(run_folder, tmp_path, value):
    arguments = ("export", run_folder, "--out", tmp_path / "b", f"--trim-vocabulary={value}")
    refuse(*arguments, parts=[f"--trim-vocabulary={value}", "number of tokens"], status=2)


def test_split_feeds_train_and_exclude_keeps_test_texts_out(corpus, tiny_bert_folder, tmp_path):
    outcome = succeed(
        *("split", corpus / "all.csv", "--labeled-per-class", 4, "--validation-per-class", 3),
        *("--seed", 1, "--exclude", corpus / "test.csv", "--out", tmp_path / "s"),
    )
    assert "12 labelled, 9 validation, 69 unlabelled" in outcome.out
    assert "30 excluded" in outcome.out
    files = [
        part
        for name in ("labeled", "unlabeled", "validation")
        for part in (f"--{name}", tmp_path / "s" / f"{name}.csv")
    ]
    succeed("train", *files, "--backbone", tiny_bert_folder, *FAST, "--out", tmp_path / "r")
    selection = json.loads((tmp_path / "r" / "summary.json").read_text())["selection"]
    assert selection["labels_used"] == 9
    assert "9 validation rows" in selection["criterion"]


@pytest.mark.parametrize("kind", ["recipes", "objectives", "peft", "encoders", "layer-maps"])
def test_list_names_each_with_a_line(kind):
    lines = succeed("list", kind).out.splitlines()
    assert len(lines) >= 2
    for line in lines:
        name, _, about = line.partition(": ")
        assert name
        assert about, line


def test_list_says_what_each_recipe_is():
    lines = succeed("list", "recipes").out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == recipe_names()
    about = dict(line.split(": ", 1) for line in lines)
    assert about["supervised"].startswith("Labelled rows only: every learner on its own")
    assert about["disco"] == "DisCo (arXiv 2305.12074): no teacher while learning"


@pytest.mark.parametrize(
    ("head", "about"),
    [
        ("# One (arXiv 1.2) way.\n# Two.", "One (arXiv 1.2) way"),
        ("# It goes on\n# a line below: here; not here", "It goes on a line below: here"),
        ("\n#No space. None", "No space"),
        ("", "phases a, b"),
        ("#\n#", "phases a, b"),
        ("training.steps = 3\n# Not at the head.", "phases a, b"),
    ],
)
def test_what_a_recipe_says_of_itself(head, about, monkeypatch, tmp_path):
    phases = "".join(f'\n[phases.{n}]\nlearners = "all"\n' for n in "ab")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own.toml").write_text(f"{head}\n{phases}", encoding="utf-8")
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    assert succeed("list", "recipes").out == f"own: {about}\n"


def test_list_refuses_an_unknown_kind():
    refuse("list", "recipe", parts=["unknown kind 'recipe'", "did you mean 'recipes'"], status=2)


# the outside of the program


def test_version_and_help():
    assert succeed("--version").out.strip().endswith(package.__version__)
    assert succeed("train", "--help").out.startswith("Usage: nanonet train")


def test_without_a_command_the_help_is_shown():
    outcome = nanonet()
    assert "Commands:" in outcome.out + outcome.err
    assert "error" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train"], ["--out", "nanonet train --help"]),
        (["trian"], ["trian", "nanonet --help"]),
        (["train", "--lebeled", "x", "--out", "y"], ["--lebeled"]),
        (["predict", "b", "text", "--threads", "-1"], ["--threads", "-1"]),
        (["export", "r", "--out", "b", "--quantize", "int3"], ["--quantize", "int3"]),
    ],
)
def test_wrong_usage_is_one_line(arguments, parts):
    refuse(*arguments, parts=parts, status=2)


def test_the_program_exits_with_a_status_and_one_line(tmp_path):
    done = subprocess.run(
        [*COMMAND, "predict", str(tmp_path / "none"), "text"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"error: bundle {tmp_path / 'none'} does not exist\n"


def test_the_program_survives_a_reader_that_leaves(bundle):
    """As in ``nanonet predict … | head -1``."""
    texts = " ".join(["apple"] * 20_000)
    script = f"set -o pipefail; {sys.executable} -m nanonet predict {bundle} {texts} | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert done.returncode == 1


def test_ctrl_c_outside_of_training(monkeypatch):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nanonet.core.config.recipe_names", interrupt)
    outcome = nanonet("list", "recipes")
    assert (outcome.status, outcome.err.strip()) == (130, "error: interrupted")


def test_the_installed_script_is_the_same_program():
    script = Path(sys.executable).parent / "nanonet"
    if not script.is_file():
        pytest.skip("nanonet is not installed as a script")
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [script, "list", "recipes"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0
    assert "supervised: Labelled rows only" in done.stdout
    assert done.stderr == ""
