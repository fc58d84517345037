"""Giving no label: the threshold that export chooses, and what comes of it everywhere."""

import json
import shutil

import numpy as np
import pytest
from scipy.stats import binomtest

from nanonet import Predictor
from nanonet.core.bundle import read_manifest
from nanonet.core.errors import BundleError, ConfigError
from nanonet.data.readers import Columns, read_table, table_from_lists
from nanonet.export import Compression, export
from nanonet.export.abstention import choose_threshold, fewest_rows, lower_bound
from nanonet.runtime.batch import Classify
from nanonet.scoring import evaluate_bundle, evaluate_run
from runs import refuse, succeed
from tiny import WINDOW_FLAGS

TARGET = 0.3  # of a model as small as the tests': its precision is above it, its accuracy too


def test_the_bound_is_clopper_pearson_s():
    for right, rows in ((0, 5), (3, 7), (59, 59), (180, 200)):
        exact = binomtest(right, rows).proportion_ci(0.9, "exact")  # two-sided: 5% on each side
        assert lower_bound(right, rows) == pytest.approx(exact.low, abs=1e-9)
    for target in (0.5, 0.9, 0.95, 0.99):
        n = fewest_rows(target)
        assert lower_bound(n, n) >= target > lower_bound(n - 1, n - 1)


def sample(rng, rows):
    """Confidences and, with just those chances, whether the class is right."""
    confidence = rng.beta(3, 0.6, size=rows)
    return confidence, rng.random(rows) < confidence


def test_the_precision_holds_as_often_as_promised():
    rng = np.random.default_rng(0)
    everyone = np.sort(rng.beta(3, 0.6, size=100_000))[::-1]
    precision = np.cumsum(everyone) / np.arange(1, len(everyone) + 1)
    broken, coverages = 0, []
    for _ in range(300):
        try:
            chosen = choose_threshold(*sample(rng, 400), 0.9, "t")
        except BundleError:  # it may also say that it does not know
            coverages.append(0.0)
            continue
        covered = int((everyone >= chosen.min_confidence).sum())
        coverages.append(covered / len(everyone))
        broken += precision[covered - 1] < 0.9
    assert broken <= 0.05 * 300 + 2 * np.sqrt(300 * 0.05 * 0.95)
    assert np.mean(coverages) > 0.55  # of 0.82 that would be covered if the truth were known


def test_what_is_reported_is_what_the_threshold_does():
    confidence, right = sample(np.random.default_rng(1), 1000)
    chosen = choose_threshold(confidence, right, 0.9, "some.csv")
    covered = confidence >= chosen.min_confidence
    assert 0.0 < chosen.min_confidence < 1.0
    assert chosen.coverage == covered.mean()
    assert chosen.precision == right[covered].mean()
    assert chosen.precision_bound >= 0.9 == chosen.target_precision
    assert (chosen.rows, chosen.source) == (1000, "some.csv")


def test_rows_of_equal_confidence_stay_together():
    confidence = np.repeat([0.9, 0.8, 0.7], 40)
    right = np.repeat([True, True, False], 40)
    chosen = choose_threshold(confidence, right, 0.9, "t")
    assert chosen.coverage == pytest.approx(2 / 3)
    assert 0.7 < chosen.min_confidence < 0.8


def test_all_rows_can_be_covered():
    chosen = choose_threshold(np.linspace(0.4, 0.9, 100), np.ones(100, bool), 0.95, "t")
    assert (chosen.min_confidence, chosen.coverage) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("rows", "wrong", "message"),
    [
        (58, [], "takes at least 59 labelled rows to show, and few.csv has 58"),
        (0, [], "takes at least 59 labelled rows to show, and few.csv has 0"),
        (60, [3], "of the 59 rows of few.csv that the model is surest of, 58 are right, which"),
        (500, range(0, 500, 9), "of the 100 rows of few.csv that .* 88 are right, which shows 81"),
    ],
)
def test_a_precision_that_is_not_shown(rows, wrong, message):
    right = np.ones(rows, bool)
    right[list(wrong)] = False
    with pytest.raises(BundleError, match=message):
        choose_threshold(np.linspace(1, 0.5, rows), right, 0.95, "few.csv")


@pytest.fixture(scope="module")
def labelled(corpus):
    """Texts of which 30 are labelled training texts."""
    return read_table(corpus / "all.csv", Columns(), labels="required")


@pytest.fixture(scope="module")
def unsure(run_folder, corpus, tmp_path_factory):
    """A bundle that abstains, made by the command line."""
    out = tmp_path_factory.mktemp("unsure") / "bundle"
    done = succeed(
        *("export", run_folder, "--out", out),
        *("--target-precision", TARGET, "--data", corpus / "all.csv"),
    )
    assert "95% confidence" in done.out
    return out


def test_export_keeps_the_choice(unsure, labelled, corpus):
    chosen = read_manifest(unsure).abstention
    assert chosen.source == str(corpus / "all.csv")
    assert chosen.rows == 90  # without the training texts
    assert chosen.target_precision == TARGET
    predictor = Predictor.load(unsure)
    new = labelled.texts[30:]
    probabilities = predictor.predict_proba(new)
    sure = probabilities.max(-1) >= predictor.min_confidence
    assert chosen.coverage == pytest.approx(sure.mean())
    right = probabilities.argmax(-1) == np.array(labelled.labels[30:])
    assert chosen.precision == pytest.approx(right[sure].mean())


def with_threshold(bundle, out, threshold):
    """Return a copy of a bundle with another threshold."""
    folder = shutil.copytree(bundle, out)
    values = json.loads((folder / "manifest.json").read_text())
    values["abstention"]["min_confidence"] = threshold
    (folder / "manifest.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def half(unsure, labelled, tmp_path_factory):
    """A bundle that gives half of the texts a label."""
    median = float(np.median(Predictor.load(unsure).predict_proba(labelled.texts).max(-1)))
    return with_threshold(unsure, tmp_path_factory.mktemp("half") / "bundle", median)


def test_the_predictor_abstains(half, labelled):
    predictor = Predictor.load(half)
    names = predictor(labelled.texts)
    sure = predictor.predict_proba(labelled.texts).max(-1) >= predictor.min_confidence
    assert [name is not None for name in names] == sure.tolist()
    assert 0.4 < np.mean(sure) < 0.6
    every = Predictor.load(half, min_confidence=0.0)(labelled.texts)
    assert None not in every
    assert [n for n in names if n] == [e for e, n in zip(every, names, strict=True) if n]
    assert set(Predictor.load(half, min_confidence=1.0)(labelled.texts)) == {None}


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_none(half, wrong):
    with pytest.raises(ConfigError, match=r"min_confidence is .*, but must be from 0 to 1"):
        Predictor.load(half, min_confidence=wrong)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, None, "0.5"])
def test_a_damaged_threshold(half, tmp_path, wrong):
    with pytest.raises(BundleError, match="is damaged"):
        Predictor.load(with_threshold(half, tmp_path / "bundle", wrong))


def test_a_bundle_of_an_older_version(half, bundle, tmp_path, labelled):
    old = shutil.copytree(half, tmp_path / "bundle")
    values = json.loads((old / "manifest.json").read_text())
    del values["abstention"], values["calibration"]
    (old / "manifest.json").write_text(json.dumps(values))
    predictor = Predictor.load(old)
    assert predictor.min_confidence == 0.0
    assert None not in predictor(labelled.texts)
    scores = evaluate_bundle(old, labelled)
    assert (scores.coverage, scores.accuracy_covered) == (1.0, scores.accuracy)
    assert scores.ece == scores.ece_uncalibrated


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_files(half, corpus, tmp_path, suffix, labelled):
    out = tmp_path / f"answers{suffix}"
    succeed("predict", half, "--input", corpus / "all.csv", "--output", out)
    expected = Classify(Predictor.load(half)).answer(labelled.texts)
    if suffix == ".csv":
        import csv

        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        written = [row["abstained"] == "True" for row in rows]
        assert {row["label"] for row in rows if row["abstained"] == "True"} == {""}
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        written = [row["abstained"] for row in rows]
        assert [row["label"] for row in rows] == expected["label"]
    else:
        import pyarrow.parquet

        columns = pyarrow.parquet.read_table(out).to_pydict()
        written = columns["abstained"]
        assert columns["label_name"] == expected["label_name"]
        assert columns["label"] == expected["label"]
    assert written == expected["abstained"]
    assert {True, False} == set(written)


def test_the_command_line_s_threshold_comes_first(half):
    out = succeed("predict", half, "an apple", "--min-confidence", "1").out
    assert out.startswith("(abstained)\t0.")
    out = succeed("predict", half, "an apple", "--min-confidence", "0").out
    assert out.split("\t")[0] in ("fruit", "metal", "water")
    refuse("predict", half, "a", "--min-confidence", "2", parts=["--min-confidence"], status=2)


def test_unfinished_work_with_another_threshold(half, corpus, tmp_path, monkeypatch):
    from nanonet.runtime import batch

    source = tmp_path / "in.csv"
    shutil.copy(corpus / "all.csv", source)
    broken = [(["an apple"], 0.5)]

    def blocks():
        yield from broken
        raise OSError("gone")

    files = batch.Files(blocks(), ".jsonl", lambda path, _: path.write_text("x"), lambda *_: None)
    progress = type("P", (), {"update": lambda *_: None})()
    out = tmp_path / "out.jsonl"
    with pytest.raises(OSError, match="gone"):
        batch.predict_file(Classify(Predictor.load(half)), half, out, files, progress)
    refuse(
        *("predict", half, "--input", source, "--output", out, "--min-confidence", "0.1"),
        parts=["unfinished work", "another least confidence", "--overwrite"],
    )
    succeed("predict", half, "--input", source, "--output", out)


def test_evaluation(half, run_folder, labelled, corpus):
    scores = evaluate_bundle(half, labelled)
    predictor = Predictor.load(half)
    names = predictor(labelled.texts)
    truth = [predictor.labels.names[i] for i in labelled.labels]
    right = [n == t for n, t in zip(names, truth, strict=True) if n is not None]
    assert scores.coverage == pytest.approx(len(right) / len(names))
    assert scores.accuracy_covered == pytest.approx(np.mean(right))
    assert scores.min_confidence == predictor.min_confidence
    assert evaluate_bundle(half, labelled, min_confidence=1.0).accuracy_covered is None
    same = evaluate_run(run_folder, labelled, min_confidence=predictor.min_confidence)
    assert same.coverage == pytest.approx(scores.coverage, abs=0.02)
    data = corpus / "all.csv"
    shown = json.loads(succeed("evaluate", half, "--data", data, "--json").out)
    assert shown["coverage"] == scores.coverage
    assert shown["accuracy_covered"] == scores.accuracy_covered
    assert "covered   0." in succeed("evaluate", half, "--data", data).out
    assert "covered" not in succeed("evaluate", half, "--data", data, "--min-confidence", 0).out


def test_the_threshold_is_the_small_model_s(run_folder, labelled, tmp_path):
    small = Compression("int8")
    made = export(
        *(run_folder, tmp_path / "bundle"),
        compression=small,
        data=labelled,
        target_precision=TARGET,
    )
    predictor = Predictor.load(tmp_path / "bundle")
    sure = predictor.predict_proba(labelled.texts[30:]).max(-1) >= predictor.min_confidence
    assert made.abstention.coverage == pytest.approx(sure.mean())


def test_nothing_is_written_without_the_precision(run_folder, corpus, tmp_path):
    out = tmp_path / "bundle"
    to = ("export", run_folder, "--out", out, "--target-precision")
    refuse(*to, "0.9999", "--data", corpus / "all.csv", parts=["29956", "has 90"])
    refuse(*to, "0.9", parts=["validation texts are none", "--data FILE"])
    refuse(*to, "0.9", "--data", corpus / "unlabeled.csv", parts=["unlabeled.csv", "'label'"])
    refuse(*to, "1", "--data", corpus / "all.csv", parts=["--target-precision"], status=2)
    refuse(*to, "0.9", "--format", "hf", parts=["--target-precision", "bundle"], status=2)
    assert not out.exists()


def test_texts_without_labels(run_folder, tmp_path):
    table = table_from_lists(["a"], None, "bare.csv")
    with pytest.raises(BundleError, match=r"needs labels, and bare\.csv has none"):
        export(run_folder, tmp_path / "bundle", data=table, target_precision=0.9)


def test_the_run_s_validation_texts_serve(train_arguments, corpus, tmp_path):
    validation = tmp_path / "validation.csv"
    shutil.copy(corpus / "test.csv", validation)
    run = tmp_path / "run"
    succeed(*train_arguments, *WINDOW_FLAGS, "--validation", validation, "--out", run)
    to = ("export", run, "--out", tmp_path / "bundle", "--target-precision", "0.2")
    succeed(*to)
    chosen = read_manifest(tmp_path / "bundle").abstention
    assert (chosen.source, chosen.rows) == (str(validation), 30)
    validation.write_text(validation.read_text() + "more,0,fruit\n")
    refuse(*to, "--overwrite", parts=["gone or have changed", "--data FILE"])
