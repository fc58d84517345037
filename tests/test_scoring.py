import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from nanonet import scoring
from nanonet.core.bundle import is_bundle
from nanonet.core.errors import DataError, RunError
from nanonet.data.readers import Columns, read_table, table_from_lists
from nanonet.export import load_cohort
from nanonet.runtime.predictor import Predictor
from nanonet.tasks.metrics import accuracy, macro_f1, softmax
from nanonet.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def table(corpus):
    return read_table(corpus / "test.csv", Columns(), labels="required")


@pytest.fixture
def run(run_folder, tmp_path):
    """A run that was never evaluated."""
    copy = shutil.copytree(run_folder, tmp_path / "run")
    (copy / "evaluations.jsonl").unlink(missing_ok=True)
    return copy


def test_a_bundle_s_scores_are_those_of_its_predictions(bundle, table):
    scores = scoring.evaluate_bundle(bundle, table, threads=1)
    predicted = Predictor.load(bundle).predict_logits(table.texts).argmax(-1)
    assert scores.accuracy == pytest.approx(accuracy_score(table.labels, predicted))
    assert scores.macro_f1 == pytest.approx(f1_score(table.labels, predicted, average="macro"))
    assert scores.examples == len(table.texts)
    assert scores.seconds > 0
    assert scores.learners == {}
    assert "learners" not in scores.to_json()


def test_a_run_s_scores(run, bundle, table):
    scores = scoring.evaluate_run(run, table)
    assert scores.accuracy == scoring.evaluate_bundle(bundle, table).accuracy
    assert set(scores.learners) == {"teacher", "student1", "student2"}
    assert scores.warnings == []


def test_learners_are_scored_each_on_its_own(run, table):
    """The accuracy of each learner is that of its own logits, computed text by text."""
    import torch

    from nanonet.tasks.tokenization import TextTokenizer

    cohort = load_cohort(RunFolder(run))
    tokenizer = TextTokenizer((run / "tokenizer.json").read_text(), 32)
    ids = [torch.from_numpy(row)[None] for row in tokenizer.encode(table.texts).ids]
    scores = scoring.evaluate_run(run, table)
    for name in cohort:
        with torch.inference_mode():
            best = [int(cohort[name](row, torch.ones_like(row)).argmax()) for row in ids]
        assert scores.learners[name] == pytest.approx(np.mean(np.array(best) == table.labels))


def test_evaluations_are_kept_one_per_data(run, table):
    scoring.evaluate_run(run, table)
    scoring.evaluate_run(run, table)
    other = table_from_lists(["an apple", "the lake"], ["fruit", "water"], "other")
    scoring.evaluate_run(run, other)
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == [table.source, "other"]
    assert rows[1]["examples"] == 2


def test_mistakes_are_noted_in_the_run_and_not_told_elsewhere(run, table):
    scores = scoring.evaluate_run(run, table)
    (noted,) = RunFolder(run).read_evaluations()
    assert noted["warnings"] == scores.warnings
    for name, counts in noted["confusion"].items():
        assert np.trace(counts) == round(scores.learners[name] * len(table.texts))
        np.testing.assert_array_equal(np.sum(counts, axis=1), [10, 10, 10])
    (told,) = RunFolder(run).describe_evaluations()
    assert told == {key: value for key, value in noted.items() if key != "confusion"}


def test_texts_that_training_saw_are_counted(run, corpus, table):
    unlabeled = read_table(corpus / "unlabeled.csv", Columns(), labels="ignored").texts
    texts = [*table.texts[:3], *(text.upper() for text in unlabeled[:2])]
    warnings = scoring.evaluate_run(run, table_from_lists(texts, [0, 1, 2, 0, 1], "t")).warnings
    (warning,) = warnings
    assert "2 of 5 texts of t were among the unlabelled training texts" in warning


def test_labels_by_value_by_name_and_unknown(bundle):
    by_name = table_from_lists(["an apple", "a lake"], ["fruit", "water"], "t")
    by_value = table_from_lists(["an apple", "a lake"], ["0", "2"], "t")
    assert (
        scoring.evaluate_bundle(bundle, by_name).accuracy
        == scoring.evaluate_bundle(bundle, by_value).accuracy
    )
    with pytest.raises(DataError, match="t, row 2: unknown label 'gas'"):
        scoring.evaluate_bundle(bundle, table_from_lists(["a", "b"], ["fruit", "gas"], "t"))


def test_a_table_without_labels(run, bundle):
    table = table_from_lists(["a", "b"], None, "t")
    with pytest.raises(DataError, match="t has no labels"):
        scoring.evaluate_bundle(bundle, table)
    with pytest.raises(DataError, match="t has no labels"):
        scoring.evaluate_run(run, table)


def test_what_is_a_bundle(run, bundle, tmp_path):
    assert is_bundle(bundle)
    assert not is_bundle(run)
    with pytest.raises(RunError):
        scoring.evaluate_run(tmp_path, table_from_lists(["a"], ["fruit"], "t"))


def test_metrics_are_scikit_learn_s():
    rng = np.random.default_rng(0)
    for classes in (2, 3, 7):
        truth, predicted = rng.integers(0, classes, size=(2, 40))
        truth[truth == 1] = 0  # a class that occurs only among the predictions
        assert accuracy(truth, predicted) == pytest.approx(accuracy_score(truth, predicted))
        expected = f1_score(truth, predicted, average="macro")
        assert macro_f1(truth, predicted) == pytest.approx(expected)


def test_softmax_survives_large_logits():
    probabilities = softmax(np.array([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(probabilities, [[1, 0, 0], [1 / 3] * 3])
