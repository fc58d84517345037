"""Texts that may have several labels each: from training to answers."""

import csv
import dataclasses
import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer
from torch.nn import functional as F

from nanonet import MultilabelPredictor, NanoNetMultilabelClassifier, Predictor
from nanonet.core.config import DataConfig
from nanonet.core.errors import BundleError, ConfigError, DataError
from nanonet.data.multilabel import multilabel_from_lists, read_multilabel
from nanonet.data.readers import table_from_lists
from nanonet.data.writers import write_table
from nanonet.export import load_cohort
from nanonet.tasks import multilabel
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training.checkpoint import list_checkpoints
from nanonet.training.evaluation import predict_logits
from nanonet.training.inputs import TrainingTables
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from runs import FAST, refuse, succeed
from test_engine import FP32
from tiny import CLASS_WORDS, FILLER, make_settings

NAMES = ["fruit", "metal", "water"]
LONG = ["--set", "training.steps=80", "--set", "training.checkpoint_every=40"]


def make_labelled(n: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Return distinct texts, each with words of none to three kinds, and these kinds."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[str]] = {}
    while len(found) < n:
        kinds = [k for k in range(3) if rng.random() < 0.4]
        words = [w for k in kinds for w in rng.choice(CLASS_WORDS[k], size=2)]
        words += list(rng.choice(FILLER, size=rng.integers(1, 3)))
        found[" ".join(rng.permutation(words))] = [NAMES[k] for k in kinds]
    return list(found), list(found.values())


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """labeled.jsonl, unlabeled.csv, validation.csv and test.parquet."""
    folder = tmp_path_factory.mktemp("labels")
    texts, labels = make_labelled(260)
    part = {"labeled.jsonl": (0, 90), "validation.csv": (90, 140), "test.parquet": (140, 200)}
    for name, (start, end) in part.items():
        cells = (
            labels[start:end] if ".csv" not in name else [";".join(y) for y in labels[start:end]]
        )
        write_table(folder / name, {"text": texts[start:end], "label": cells})
    write_table(folder / "unlabeled.csv", {"text": texts[200:]})
    return folder


@pytest.fixture(scope="module")
def run(files, tiny_bert_folder, tmp_path_factory) -> Path:
    """A finished run with validation texts, long enough to have learnt something. Read only."""
    out = tmp_path_factory.mktemp("runs") / "run"
    data = ["--labeled", files / "labeled.jsonl", "--unlabeled", files / "unlabeled.csv"]
    data += ["--validation", files / "validation.csv", "--backbone", tiny_bert_folder]
    succeed("train", "--task", "multilabel", *data, *FAST, *LONG, "--out", out)
    return out


@pytest.fixture(scope="module")
def bundle(run) -> Path:
    out = run.parent / "bundle"
    assert "3 labels" in succeed("export", run, "--out", out).out
    return out


def truth_of(files) -> tuple[list[str], np.ndarray]:
    table = read_multilabel(files / "test.parquet", DataConfig(), labels="required")
    binarizer = MultiLabelBinarizer(classes=NAMES)
    return table.texts, binarizer.fit_transform(table.label_lists)


# learning


def test_the_loss_is_the_binary_cross_entropy_of_all_labels(tmp_path, tiny_bert_folder):
    """Of the first step of a run, computed from the labels alone: all heads start at zero."""
    texts, labels = make_labelled(24)
    tables = TrainingTables(multilabel_from_lists(texts, labels, "given"))
    config = make_settings(
        tiny_bert_folder,
        *("training.steps=2", "training.log_every=1", "training.labeled_batch=24"),
        recipe="supervised",
    )
    config = dataclasses.replace(config, task="multilabel")
    out = tmp_path / "run"
    train(config, lambda: tables, out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    truth = torch.tensor(MultiLabelBinarizer(classes=NAMES).fit_transform(labels)).float()
    first = F.binary_cross_entropy_with_logits(torch.zeros_like(truth), truth)
    for name in ("teacher", "student1"):
        assert rows[0]["losses"][f"{name}.supervised"] == pytest.approx(float(first), abs=1e-6)
        assert rows[1]["losses"][f"{name}.supervised"] < float(first)


def test_students_are_chosen_by_average_precision(run, files):
    summary = RunFolder(run).read_summary()
    table = read_multilabel(files / "validation.csv", DataConfig(), labels="required")
    truth = MultiLabelBinarizer(classes=NAMES).fit_transform(table.label_lists)
    tokenizer = TextTokenizer(RunFolder(run).read_tokenizer(), 32)
    scores = {}
    for name in summary["students"]:
        units = predict_logits(
            load_cohort(RunFolder(run))[name], tokenizer.encode(table.texts).ids, FP32
        )
        logits = multilabel.logits_of_units(units, 3)
        scores[name] = average_precision_score(truth, logits, average="micro")
    assert summary["selection"]["scores"] == pytest.approx(scores, abs=1e-6)
    assert summary["selected"] == max(scores, key=scores.get)
    assert "average precision on 50 validation rows" in summary["selection"]["criterion"]


def test_it_learns_and_says_how_well(run, bundle, files):
    texts, truth = truth_of(files)
    scores = json.loads(succeed("evaluate", run, "--data", files / "test.parquet", "--json").out)
    assert set(scores["learners"]) == {"teacher", "student1", "student2"}
    assert scores["examples"] == 60
    assert scores["micro_f1"] > 0.65  # giving every label to every text gets 0.57
    of_bundle = json.loads(
        succeed("evaluate", bundle, "--data", files / "test.parquet", "--json").out
    )
    for key in ("accuracy", "micro_f1", "macro_f1", "by_label"):
        assert of_bundle[key] == pytest.approx(scores[key]), key
    said = MultiLabelBinarizer(classes=NAMES).fit_transform(MultilabelPredictor.load(bundle)(texts))
    assert of_bundle["accuracy"] == pytest.approx(accuracy_score(truth, said))
    assert of_bundle["micro_f1"] == pytest.approx(f1_score(truth, said, average="micro"))
    assert list(of_bundle["by_label"]) == NAMES
    told = succeed("evaluate", run, "--data", files / "test.parquet").out
    assert "all labels right" in told
    assert "label metal: F1" in told


def test_thresholds_are_the_run_s_everywhere(run, bundle, files):
    summary = RunFolder(run).read_summary()
    values = summary["thresholds"]["values"]
    assert len(values) == 3
    assert summary["thresholds"]["labels_used"] == 50
    assert "50 validation rows" in summary["calibration"]["method"]
    predictor = MultilabelPredictor.load(bundle)
    np.testing.assert_allclose(predictor.thresholds, values, rtol=1e-6)
    texts, _ = truth_of(files)
    selected = load_cohort(RunFolder(run))[summary["selected"]]
    probabilities = predictor.predict_proba(texts)
    ids = predictor.encode(texts[:1]).ids[0]
    with torch.inference_mode():
        logits = selected(torch.from_numpy(ids)[None], torch.ones(1, len(ids), dtype=torch.int64))
    np.testing.assert_allclose(probabilities[0], torch.sigmoid(logits)[0].numpy(), atol=1e-5)
    given = [[NAMES[k] for k in np.flatnonzero(p >= predictor.thresholds)] for p in probabilities]
    assert predictor(texts) == given
    every = MultilabelPredictor.load(bundle, threshold=0.0)
    assert every(texts[:1]) == [NAMES]
    strict = succeed(
        "evaluate", bundle, "--data", files / "test.parquet", "--threshold", 1, "--json"
    )
    assert json.loads(strict.out)["micro_f1"] == 0


def test_expected_thresholds_are_those_of_the_best_f1_of_true_probabilities():
    rng = np.random.default_rng(0)
    probabilities = rng.beta([[0.3, 2.0]], [[1.0, 2.0]], size=(20_000, 2))
    truth = rng.random(probabilities.shape) < probabilities
    found = multilabel.expected_thresholds(probabilities)
    assert found == pytest.approx(multilabel.best_thresholds(truth, probabilities), abs=0.04)
    for k, limit in enumerate(found):  # Lipton et al. 2014: half of the best F1
        best = multilabel.micro_f1(truth[:, k], probabilities[:, k] >= limit)
        assert limit == pytest.approx(best / 2, abs=0.01)


def test_without_validation_no_label_is_looked_at(files, tiny_bert_folder, tmp_path):
    out = tmp_path / "run"
    data = ["--labeled", files / "labeled.jsonl", "--unlabeled", files / "unlabeled.csv"]
    succeed(
        "train", "--task", "multilabel", *data, "--backbone", tiny_bert_folder, *FAST, "--out", out
    )
    summary = RunFolder(out).read_summary()
    assert summary["thresholds"]["labels_used"] == 0
    assert "60 unlabelled texts, without labels" in summary["thresholds"]["method"]
    assert all(0 < value < 1 for value in summary["thresholds"]["values"])
    assert summary["calibration"] is None
    assert summary["selection"]["labels_used"] == 0
    succeed("export", out, "--out", tmp_path / "b")
    thresholds = MultilabelPredictor.load(tmp_path / "b").thresholds
    np.testing.assert_allclose(thresholds, summary["thresholds"]["values"], rtol=1e-6)
    refuse(
        "export",
        out,
        "--out",
        tmp_path / "c",
        "--target-precision",
        0.9,
        parts=["classifiers"],
        status=2,
    )


def test_without_other_texts_the_threshold_is_a_half(tmp_path, tiny_bert_folder):
    texts, labels = make_labelled(20)
    tables = TrainingTables(multilabel_from_lists(texts, labels, "given"))
    config = make_settings(tiny_bert_folder, "training.steps=2", recipe="supervised")
    train(dataclasses.replace(config, task="multilabel"), lambda: tables, tmp_path / "run")
    succeed("export", tmp_path / "run", "--out", tmp_path / "b")
    assert (MultilabelPredictor.load(tmp_path / "b").thresholds == 0.5).all()


def test_a_resumed_run_ends_as_one_that_was_never_stopped(files, tiny_bert_folder, tmp_path):
    texts, labels = make_labelled(60)
    config = make_settings(tiny_bert_folder, "training.steps=6", "training.checkpoint_every=3")
    config = dataclasses.replace(config, task="multilabel")
    tables = TrainingTables(
        multilabel_from_lists(texts[:30], labels[:30], "given"),
        table_from_lists(texts[30:], None, "more"),
    )
    whole = train(config, lambda: tables, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    shutil.rmtree(list_checkpoints(tmp_path / "cut" / "checkpoints")[-1])
    again = train(config, lambda: tables, tmp_path / "cut", mode="resume")
    assert again["weights_sha256"] == whole["weights_sha256"]


# what is made of a run


def test_answers_in_files_and_on_the_screen(bundle, files, tmp_path):
    texts, _ = truth_of(files)
    given = MultilabelPredictor.load(bundle)(texts)
    source = ["--input", files / "test.parquet"]
    for name in ("o.jsonl", "o.csv", "o.parquet"):
        succeed("predict", bundle, *source, "--output", tmp_path / name)
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["text", "labels", "label_names", "probabilities"]
    assert [row["text"] for row in rows] == texts
    assert [sorted(row["label_names"]) for row in rows] == given
    for row in rows:
        assert row["labels"] == row["label_names"]
        assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
    cells = list(csv.DictReader(io.StringIO((tmp_path / "o.csv").read_text())))
    assert [json.loads(c["labels"]) for c in cells] == [row["labels"] for row in rows]
    pyarrow = pytest.importorskip("pyarrow.parquet")
    assert pyarrow.read_table(tmp_path / "o.parquet").to_pylist() == rows
    shown = succeed("predict", bundle, *texts[:3]).out.splitlines()
    for line, own, text in zip(shown, given, texts, strict=False):
        said, told = line.split("\t")
        assert told == text
        assert said == "(no label)" if not own else all(name in said for name in own)
    nothing = succeed("predict", bundle, texts[0], "--threshold", 1).out
    assert nothing == f"(no label)\t{texts[0]}\n"


def test_fewer_bits_and_tokens(run, bundle, files, tmp_path):
    small = ["--quantize", "int8", "--trim-vocabulary=20", "--data", files / "test.parquet"]
    told = succeed("export", run, "--out", tmp_path / "b", *small)
    assert "accuracy" in told.out
    succeed("evaluate", tmp_path / "b", "--data", files / "test.parquet", "--json")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["task"] == "multilabel"
    plain, smaller = (MultilabelPredictor.load(b) for b in (bundle, tmp_path / "b"))
    texts, _ = truth_of(files)
    same = [a == b for a, b in zip(plain(texts), smaller(texts), strict=True)]
    assert manifest["metrics"]["steps"][-1]["agreement"] == pytest.approx(np.mean(same))
    right = json.loads(succeed("evaluate", bundle, "--data", files / "test.parquet", "--json").out)
    assert manifest["metrics"]["steps"][0]["accuracy"] == pytest.approx(right["accuracy"])
    # Without --data: the run's own unlabelled texts.
    succeed("export", run, "--out", tmp_path / "c", "--quantize", "int8")


def test_it_is_served(bundle, files):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from nanonet.runtime.server import create_app
    from nanonet.runtime.service import ServerSettings

    texts, _ = truth_of(files)
    predictor = MultilabelPredictor.load(bundle)
    with TestClient(create_app(predictor, ServerSettings(max_latency=30.0))) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.05)
        answer = client.post("/predict", json={"texts": texts[:5], "probabilities": True})
        assert answer.status_code == 200, answer.text
        rows = answer.json()["predictions"]
        assert [sorted(c["label_name"] for c in row["labels"]) for row in rows] == predictor(
            texts[:5]
        )
        assert list(rows[0]["probabilities"]) == NAMES
        every = client.post("/predict", json={"text": texts[0], "threshold": 0}).json()
        assert len(every["predictions"][0]["labels"]) == 3
        assert "probabilities" not in every["predictions"][0]
        assert client.post("/predict", json={"text": "x", "top_k": 2}).status_code == 422
        assert "Label" in client.get("/").text


def test_its_report(run, files, tmp_path):
    pytest.importorskip("jinja2")
    own = shutil.copytree(run, tmp_path / "run")
    succeed("report", own, "--data", files / "test.parquet", "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "Model of 3 labels" in page
    for text in ("micro-F1, %", "all labels right, %", "Each label, the shipped learner", "metal"):
        assert text in page


# the estimator


def test_the_estimator(tiny_bert_folder, files):
    texts, labels = make_labelled(150, seed=5)
    small = {"data.max_length": 32, "cohort.student_layers": 2, "training.threads": 1}
    small["warmup.steps"] = 0
    model = NanoNetMultilabelClassifier(backbone=str(tiny_bert_folder), steps=60, settings=small)
    model.fit(texts[:90], labels[:90], unlabeled=texts[90:120])
    assert list(model.classes_) == NAMES
    found = model.predict(texts[120:])
    assert found.shape == (30, 3)
    assert model.predict_labels(texts[120:]) == [
        [NAMES[k] for k in np.flatnonzero(row)] for row in found
    ]
    truth = MultiLabelBinarizer(classes=NAMES).fit_transform(labels[120:])
    assert model.score(texts[120:], labels[120:]) == pytest.approx(
        f1_score(truth, found, average="micro")
    )
    flags = MultiLabelBinarizer(classes=NAMES).fit_transform(labels)
    same = NanoNetMultilabelClassifier(backbone=str(tiny_bert_folder), steps=60, settings=small)
    same.fit(texts[:90], flags[:90], unlabeled=texts[90:120])
    assert list(same.classes_) == [0, 1, 2]
    assert same.summary_["weights_sha256"] == model.summary_["weights_sha256"]
    assert np.array_equal(same.predict(texts[120:]), found)


def test_an_estimator_is_saved_and_loaded(bundle, files, tmp_path):
    texts, truth = truth_of(files)
    model = NanoNetMultilabelClassifier.load(bundle)
    model.save(tmp_path / "b")
    again = NanoNetMultilabelClassifier.load(tmp_path / "b")
    assert np.array_equal(again.predict(texts), model.predict(texts))
    assert f1_score(truth, model.predict(texts), average="micro") > 0.65


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("ab", "give a list of labels for each text"),
        (np.array([[0, 2], [1, 0]]), "other numbers than 0 and 1"),
        ([["a"]], "2 texts but 1 lists of labels"),
        ([["a"], "b"], "no list of labels"),
        ([["a"], ["a"]], "only one label"),
        ([[0, 0, 1], [1, 0, 1]], "label twice"),
        (np.array([[1, 0, 1], [1, 0, 0]]), "column 1 of y is 0 for all texts"),
        ([[], []], "no labels"),
    ],
)
def test_an_estimator_refuses(tiny_bert_folder, labels, says):
    short = {"data.max_length": 32, "cohort.student_layers": 2}
    model = NanoNetMultilabelClassifier(backbone=str(tiny_bert_folder), steps=2, settings=short)
    with pytest.raises(DataError, match=says):
        model.fit(["x", "y"], labels)


# what is refused


def test_options_of_other_tasks(run, bundle, files, tmp_path):
    data = ["--data", files / "test.parquet"]
    for path in (run, bundle):
        refuse("evaluate", path, *data, "--min-confidence", 0.5, parts=["classifiers"], status=2)
        refuse("evaluate", path, *data, "--budget", "words=3", parts=["--budget"], status=2)
        refuse("suggest", path, *data, "-n", 3, parts=["classifiers only"], status=2)
    refuse("predict", bundle, "x", "--min-confidence", 0.5, parts=["classifiers"], status=2)
    refuse("export", run, "--out", tmp_path / "b", "--format", "hf", parts=["multilabel"])
    with pytest.raises(BundleError, match="load it with MultilabelPredictor"):
        Predictor.load(bundle)
    with pytest.raises(ConfigError, match="threshold is 2"):
        MultilabelPredictor.load(bundle, threshold=2)


def test_a_classifier_has_no_threshold(request, corpus):
    run, bundle = (
        request.getfixturevalue("run_folder"),
        request.getfixturevalue("bundle_of_classes"),
    )
    for path in (run, bundle):
        refuse(
            "evaluate",
            path,
            "--data",
            corpus / "test.csv",
            "--threshold",
            0.5,
            parts=["multilabel"],
            status=2,
        )
    with pytest.raises(BundleError, match="load it with Predictor"):
        MultilabelPredictor.load(bundle)


@pytest.fixture(scope="module")
def bundle_of_classes(run_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "b"
    succeed("export", run_folder, "--out", out)
    return out


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.class_weight=balanced", "training.class_weight is for classification"),
        (
            "propagation.labels=combined",
            "propagation.labels=combined is for texts that have one of",
        ),
    ],
)
def test_settings_of_classification(files, tiny_bert_folder, tmp_path, setting, says):
    data = ["--labeled", files / "labeled.jsonl", "--backbone", tiny_bert_folder]
    refuse(
        *("train", "--task", "multilabel", *data, "--set", setting, "--out", tmp_path / "r"),
        parts=[says],
        status=2,
    )


def test_a_damaged_bundle(bundle, tmp_path):
    for change, says in (
        (lambda m: m["thresholds"].update(values=[0.5]), "1 thresholds of 3 labels"),
        (lambda m: m["thresholds"].update(values=[0.5, 2, 0.5]), "thresholds"),
    ):
        folder = tmp_path / "b"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bundle, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        refuse("predict", folder, "x", parts=[says])


def test_a_run_of_another_task_is_no_start(run, corpus, tiny_bert_folder, tmp_path):
    what = ["train", "--labeled", corpus / "labeled.csv", "--backbone", tiny_bert_folder, *FAST]
    refuse(*what, "--init", run, "--out", tmp_path / "r", parts=["it has other task"])
