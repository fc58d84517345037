"""Probabilities that mean something: the temperature, from fitting it to the bundle."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from nanonet import Predictor
from nanonet.core.bundle import Calibration, read_manifest
from nanonet.core.errors import BundleError
from nanonet.data.readers import Columns, read_table
from nanonet.export import export, load_cohort
from nanonet.scoring import evaluate_bundle, evaluate_run
from nanonet.tasks.calibration import fit_temperature, smoothed, temperature_of_confidence
from nanonet.tasks.metrics import expected_calibration_error, softmax
from nanonet.training.inputs import Classification
from nanonet.training.outcome import Answers, accuracy_bounds, calibrate
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from runs import succeed
from tiny import make_settings, make_tables


def draw(rows, classes=4, seed=0):
    """Return logits and labels that have just the probabilities that the logits say."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(rows, classes))
    chance = rng.random((rows, 1))
    return logits, (softmax(logits).cumsum(-1) < chance).sum(-1)


def test_the_error_is_that_of_a_table_of_bins():
    logits, truth = draw(500)
    probabilities = softmax(1.7 * logits)
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == truth
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(truth, probabilities) == pytest.approx(expected)
    assert expected > 0.02
    certain = np.eye(4)[[0, 1, 2, 3]]  # a confidence of one belongs to the last bin
    assert expected_calibration_error(np.arange(4), certain) == 0.0
    assert expected_calibration_error(np.array([1, 0, 3, 2]), certain) == 1.0


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_temperature_is_found_again(temperature):
    logits, truth = draw(20_000)
    found = fit_temperature(temperature * logits, np.eye(4)[truth])
    assert found == pytest.approx(temperature, rel=0.05)
    assert fit_temperature(temperature * logits, softmax(logits)) == pytest.approx(temperature)
    confidence = float(softmax(logits).max(-1).mean())
    found = temperature_of_confidence(temperature * logits, confidence)
    assert found == pytest.approx(temperature)


def test_the_fit_is_scipy_s():
    from scipy.optimize import minimize_scalar

    logits, truth = draw(60, seed=3)

    def cross_entropy(t):
        return -np.log(softmax(logits / t)[np.arange(60), truth]).mean()

    best = minimize_scalar(cross_entropy, bounds=(0.05, 20), method="bounded").x
    assert fit_temperature(logits, np.eye(4)[truth]) == pytest.approx(best, rel=1e-3)


def test_few_rows_that_are_all_right_do_not_make_certain():
    logits = 3 * np.eye(3)[np.arange(20) % 3]
    truth = logits.argmax(-1)
    assert fit_temperature(logits, np.eye(3)[truth]) == pytest.approx(0.05)  # the lowest there is
    confidence = softmax(logits / fit_temperature(logits, smoothed(truth, 3))).max()
    assert confidence == pytest.approx(1 - 2 / 3 / 22, abs=1e-6)
    np.testing.assert_allclose(smoothed(truth, 3).sum(-1), 1)


def test_the_bounds_of_the_accuracy():
    own = np.zeros(100, dtype=np.int64)
    other, third = own.copy(), own.copy()
    other[:8], third[:12] = 1, 1
    assert accuracy_bounds(own, [other, third], 2) == pytest.approx((0.8, 0.9))
    most = 1 - 1 / 102  # 100 rows can tell no more
    assert accuracy_bounds(own, [own], 2) == pytest.approx((most, most))
    assert accuracy_bounds(own, [own + 1], 4) == (0.25, 0.25)


@pytest.fixture(scope="module")
def table(corpus):
    return read_table(corpus / "test.csv", Columns(), labels="required")


def calibration_of(run):
    return RunFolder(run).read_summary()["calibration"]


def test_a_run_is_calibrated_by_its_cohort(run_folder):
    found = calibration_of(run_folder)
    assert found["method"] == "disagreement of the cohort on 60 unlabelled texts"
    assert found["labels_used"] == 0
    cohort, summary = load_cohort(RunFolder(run_folder)), RunFolder(run_folder).read_summary()
    selected = cohort[summary["selected"]]
    assert selected.head.scale == pytest.approx(10.0 / found["temperature"])
    for name in summary["students"]:
        if name != summary["selected"]:
            assert cohort[name].head.scale == 10.0


def cohort_of(wrong, scale=4.0, rows=200):
    """Return a cohort of classifiers and answers in which peers differ in so many rows."""
    own = scale * np.eye(3)[np.arange(rows) % 3] + np.random.default_rng(0).normal(size=(rows, 3))
    logits = {"student1": own}
    for name, count in zip(("teacher", "student2"), wrong, strict=True):
        logits[name] = own.copy()
        logits[name][:count] = np.roll(own[:count], 1, axis=-1)
    task = Classification(make_settings("minilm"))
    prepared = SimpleNamespace(task=task, tables={"unlabeled": None})
    return prepared, Answers(logits, None, f"{rows} unlabelled texts", rows)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(5.0, 0.9), (3.0, None), (2.2, 0.8)],
    ids=["too sure", "between the bounds", "not sure enough"],
)
def test_the_mean_confidence_comes_within_the_bounds(scale, expected):
    prepared, answers = cohort_of((24, 16), scale)
    found = calibrate(prepared, answers, "student1")
    logits = answers.logits["student1"]
    before, after = (softmax(logits / t).max(-1).mean() for t in (1.0, found.temperature))
    if expected is None:
        assert 0.8 < before < 0.9
        assert found.temperature == 1.0
    else:
        assert abs(before - expected) > 0.02
        assert after == pytest.approx(expected)
        assert 0.5 < found.temperature < 2.0


@pytest.mark.parametrize(("wrong", "scale", "limit"), [((150, 150), 4, 2.0), ((0, 0), 1, 0.5)])
def test_no_estimate_changes_much(wrong, scale, limit):
    assert calibrate(*cohort_of(wrong, scale), "student1").temperature == limit


def test_validation_labels_come_first(tiny_bert_folder, tmp_path):
    tables = make_tables(validation=6)
    train(make_settings(tiny_bert_folder), lambda: tables, tmp_path / "run")
    found = calibration_of(tmp_path / "run")
    assert found["method"] == "labels of 18 validation rows"
    assert found["labels_used"] == 18


@pytest.mark.parametrize(
    ("settings", "unlabeled"),
    [
        (["cohort.students=0"], 10),
        ([], 0),
    ],
    ids=["no students", "no unlabelled texts"],
)
def test_nothing_to_go_by(tiny_bert_folder, tmp_path, settings, unlabeled):
    tables = make_tables(unlabeled=unlabeled)
    config = make_settings(tiny_bert_folder, *settings, recipe="supervised")
    train(config, lambda: tables, tmp_path / "run")
    found = calibration_of(tmp_path / "run")
    assert found["temperature"] == 1.0
    assert found["method"].startswith("none: ")
    scores = evaluate_run(tmp_path / "run", make_tables(seed=5).labeled)
    assert scores.ece == scores.ece_uncalibrated


def with_temperature(run, out, temperature):
    """Return a copy of a run that was calibrated otherwise; None: before there was such a thing."""
    copy = shutil.copytree(run, out)
    summary = json.loads((copy / "summary.json").read_text())
    summary["calibration"]["temperature"] = temperature
    if temperature is None:
        del summary["calibration"]
    (copy / "summary.json").write_text(json.dumps(summary))
    return copy


def test_the_temperature_is_in_all_that_is_made_of_a_run(run_folder, tmp_path, table):
    plain = with_temperature(run_folder, tmp_path / "plain", None)
    warm = with_temperature(run_folder, tmp_path / "warm", 2.5)
    assert export(plain, tmp_path / "a").calibration is None
    made = export(warm, tmp_path / "b").calibration
    assert made == Calibration(2.5, calibration_of(run_folder)["method"], 0)
    before, after = Predictor.load(tmp_path / "a"), Predictor.load(tmp_path / "b")
    logits = before.predict_logits(table.texts)
    expected = softmax(logits / 2.5)
    np.testing.assert_allclose(after.predict_proba(table.texts), expected, atol=1e-5)
    assert (logits.argmax(-1) == after.predict_logits(table.texts).argmax(-1)).all()

    raw, scores = evaluate_bundle(tmp_path / "a", table), evaluate_bundle(tmp_path / "b", table)
    assert scores.accuracy == raw.accuracy
    truth = np.array(table.labels)
    assert scores.ece == pytest.approx(expected_calibration_error(truth, expected), abs=1e-4)
    assert scores.ece_uncalibrated == pytest.approx(raw.ece, abs=1e-4)
    assert raw.ece == raw.ece_uncalibrated
    of_run = evaluate_run(warm, table)
    assert of_run.ece == pytest.approx(scores.ece, abs=1e-4)
    assert of_run.ece_uncalibrated == pytest.approx(raw.ece, abs=1e-4)


def test_what_evaluate_says(run_folder, corpus, tmp_path):
    run = with_temperature(run_folder, tmp_path / "run", 2.5)
    data = corpus / "test.csv"
    shown = json.loads(succeed("evaluate", run, "--data", data, "--json").out)
    assert 0 <= shown["ece"] <= 1
    assert shown["ece"] != shown["ece_uncalibrated"]
    out = succeed("evaluate", run, "--data", data).out
    line = f"ECE       {shown['ece']:.4f}  ({shown['ece_uncalibrated']:.4f} before calibration)\n"
    assert line in out


def test_a_damaged_calibration(run_folder, tmp_path):
    export(run_folder, tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    values = json.loads(path.read_text())
    for wrong in (0, -1, "1", None):
        values["calibration"]["temperature"] = wrong
        path.write_text(json.dumps(values))
        with pytest.raises(BundleError, match="is damaged"):
            read_manifest(tmp_path / "bundle")
