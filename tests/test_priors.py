"""How common the classes are among the texts to come."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from nanonet.core.bundle import Priors, read_manifest
from nanonet.core.errors import BundleError, ConfigError
from nanonet.data.readers import Columns, read_table
from nanonet.export import export
from nanonet.runtime.predictor import Predictor
from nanonet.scoring import evaluate_bundle, evaluate_run
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.metrics import softmax
from nanonet.tasks.priors import distance, estimate_shares
from nanonet.training.outcome import Answers, find_priors
from nanonet.training.priors import describe_priors, estimated_priors, given_priors
from nanonet.training.run_folder import RunFolder
from runs import refuse, succeed
from tiny import make_settings

LABELS = LabelSet((0, 1, 2), ("fruit", "metal", "water"))
BALANCED = np.array([0, 1, 2] * 10)


def world(shares, rows=600, spread=2.5, seed=0):
    """What a calibrated model that learnt from balanced texts says of a world with such shares.

    Its logits are a class's own place plus noise, from which the true posterior follows by Bayes.
    """
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(shares), size=rows, p=shares)
    seen = spread * np.eye(len(shares))[truth] + rng.normal(size=(rows, len(shares)))
    return softmax(spread * seen), truth


@pytest.mark.parametrize("shares", [[0.9, 0.1], [0.2, 0.3, 0.5], [0.25, 0.25, 0.25, 0.25]])
def test_shares_are_found_without_labels(shares):
    probabilities, truth = world(shares, rows=4000)
    learnt = np.full(len(shares), 1 / len(shares))
    found = estimate_shares(probabilities, learnt)
    assert found.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(found, np.bincount(truth) / len(truth), atol=0.02)


def test_shares_learnt_count():
    """A model that learnt that spam is common says so of every text: that is not seen twice."""
    probabilities, _ = world([0.5, 0.5], rows=4000)
    learnt = np.array([0.2, 0.8])
    skewed = probabilities * learnt / (probabilities * learnt).sum(-1, keepdims=True)
    np.testing.assert_allclose(estimate_shares(skewed, learnt), [0.5, 0.5], atol=0.02)


def test_a_class_that_no_text_has_keeps_a_share():
    probabilities = np.tile([1.0 - 1e-12, 1e-12], (100, 1))
    found = estimate_shares(probabilities, np.array([0.5, 0.5]))
    assert 0.0 < found[1] < 0.01


def test_texts_that_are_counted_besides_keep_shares_near_those_learnt():
    probabilities, _ = world([0.8, 0.1, 0.1])
    learnt = np.full(3, 1 / 3)
    n = len(probabilities)
    found = [estimate_shares(probabilities, learnt, more)[0] for more in (1.0, n / 2, 100.0 * n)]
    assert found[0] > found[1] + 0.05 > found[2] + 0.1
    assert found[2] == pytest.approx(1 / 3, abs=0.01)


def test_fitting_to_the_shares_makes_fewer_errors():
    probabilities, truth = world([0.92, 0.04, 0.04], rows=3000, spread=1.2)
    priors = estimated_priors(probabilities, BALANCED, "3000 texts")
    assert priors is not None
    fitted = np.log(probabilities) + priors.offsets
    before, after = ((z.argmax(-1) == truth).mean() for z in (probabilities, fitted))
    assert after > before + 0.02


def test_nothing_is_fitted_where_shares_are_about_as_learnt():
    probabilities, _ = world([0.36, 0.34, 0.30])
    assert estimated_priors(probabilities, BALANCED, "texts") is None


def test_labelled_texts_that_are_not_balanced_are_the_world():
    probabilities, _ = world([0.8, 0.1, 0.1])
    assert estimated_priors(probabilities, BALANCED, "texts") is not None
    assert estimated_priors(probabilities, np.array([0] * 8 + [1, 2]), "texts") is None


def test_many_classes_need_many_texts():
    shares = [0.43] + [0.03] * 19
    truth = np.arange(20).repeat(10)
    for rows, is_fitted in ((600, True), (599, False)):
        probabilities, _ = world(shares, rows=rows, spread=3.0)
        assert (estimated_priors(probabilities, truth, "texts") is not None) == is_fitted


def test_shares_by_hand():
    config = make_settings("minilm", "training.class_prior={fruit = 0.7, '1' = 0.2, water = 0.1}")
    found = given_priors(config, LABELS, np.array([0, 1, 1, 2]))
    assert found is not None
    assert found.shares == pytest.approx([0.7, 0.2, 0.1])
    assert (found.learnt, found.method) == ([0.25, 0.5, 0.25], "the setting training.class_prior")
    assert found.offsets == pytest.approx(np.log([2.8, 0.4, 0.4]).tolist())
    assert given_priors(make_settings("minilm"), LABELS, BALANCED) is None


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("label", ["'label'", "did you mean 'labeled'", "or a table of shares"]),
        ("{fruit = 0.5, metal = 0.5, water = 0}", ["class_prior.water", "between 0 and 1"]),
        ("{fruit = 0.5, metal = 0.3, water = 0.3}", ["sum to 1.1, but must to 1"]),
        ("{fruit = 0.5, metal = 0.5}", ["no share of water"]),
        ("{fruit = 0.5, metl = 0.3, water = 0.2}", ["class_prior.metl", "did you mean 'metal'"]),
    ],
)
def test_refused(train_arguments, tmp_path, value, parts):
    out = tmp_path / "run"
    arguments = ("--set", f"training.class_prior={value}", "--out", out)
    refuse(*train_arguments, *arguments, parts=parts, status=2)
    assert not out.exists()


def test_a_summarizer_has_no_classes(stories, tiny_bert_folder, tmp_path):
    files = ["--task", "summarization", "--labeled", stories / "summarized.jsonl"]
    asked = ["--set", "training.class_prior={a = 0.5, b = 0.5}", "--backbone", tiny_bert_folder]
    parts = ["training.class_prior is for classification"]
    refuse("train", *files, *asked, "--out", tmp_path / "run", parts=parts, status=2)


@pytest.fixture(scope="module")
def table(corpus):
    return read_table(corpus / "test.csv", Columns(), labels="required")


def with_priors(run, out, priors):
    """Return a copy of a run that was fitted to such shares; None: to none."""
    copy = shutil.copytree(run, out)
    summary = json.loads((copy / "summary.json").read_text())
    summary["priors"] = priors and vars(priors)
    (copy / "summary.json").write_text(json.dumps(summary))
    return copy


def test_the_shares_are_in_all_that_is_made_of_a_run(run_folder, tmp_path, table):
    priors = Priors([0.9, 0.06, 0.04], [1 / 3] * 3, "a guess")
    plain = with_priors(run_folder, tmp_path / "plain", None)
    fitted = with_priors(run_folder, tmp_path / "fitted", priors)
    assert export(plain, tmp_path / "a").priors is None
    assert export(fitted, tmp_path / "b").priors == priors
    before, after = Predictor.load(tmp_path / "a"), Predictor.load(tmp_path / "b")
    expected = before.predict_logits(table.texts) + priors.offsets
    np.testing.assert_allclose(after.predict_logits(table.texts), expected, atol=1e-4)
    assert after.manifest.priors == priors

    raw, scores = evaluate_bundle(tmp_path / "a", table), evaluate_bundle(tmp_path / "b", table)
    assert scores.ece != pytest.approx(raw.ece, abs=1e-3)
    assert scores.ece_uncalibrated == pytest.approx(raw.ece_uncalibrated, abs=1e-4)
    of_run = evaluate_run(fitted, table)
    assert of_run.accuracy == scores.accuracy
    assert of_run.ece == pytest.approx(scores.ece, abs=1e-4)
    assert of_run.ece_uncalibrated == pytest.approx(scores.ece_uncalibrated, abs=1e-4)


@pytest.mark.parametrize("shares", [[0.5, 0.5], [1.0, 0.0, 0.0], [], ["a", "b", "c"]])
def test_a_damaged_bundle(run_folder, tmp_path, shares):
    run = with_priors(run_folder, tmp_path / "run", Priors([0.8, 0.1, 0.1], [1 / 3] * 3, "a guess"))
    export(run, tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    values = json.loads(path.read_text())
    values["priors"]["shares"] = shares
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match="is damaged"):
        read_manifest(tmp_path / "bundle")


def test_a_run_says_what_it_was_fitted_to(train_arguments, tmp_path):
    shares = "training.class_prior={fruit = 0.7, metal = 0.2, water = 0.1}"
    said = succeed(*train_arguments, "--set", shares, "--out", tmp_path / "run")
    assert "fruit 70.0%, metal 20.0%, water 10.0%" in said.err
    found = RunFolder(tmp_path / "run").priors
    assert found is not None
    assert found.shares == pytest.approx([0.7, 0.2, 0.1])


def test_only_the_most_common_are_listed():
    shares = [0.3] + [0.1] * 7
    labels = LabelSet(tuple(range(8)), tuple("abcdefgh"))
    said = describe_priors(Priors(shares, [1 / 8] * 8, "a guess"), labels)
    assert said.endswith("a 30.0%, b 10.0%, c 10.0%, d 10.0%, e 10.0%, f 10.0%, …")


def prepared(truth, **tables):
    tables = {"labeled": SimpleNamespace(truth=truth), **tables}
    return SimpleNamespace(tables=tables, engine=SimpleNamespace(soft_labels=None))


@pytest.mark.parametrize(
    ("setting", "unlabeled", "is_fitted"),
    [("auto", True, True), ("auto", False, False), ("labeled", True, False)],
)
def test_when_shares_are_estimated(setting, unlabeled, is_fitted):
    probabilities, _ = world([0.8, 0.1, 0.1])
    config = make_settings("minilm", f"training.class_prior={setting}")
    run = prepared(BALANCED, **({"unlabeled": None} if unlabeled else {}))
    answers = Answers({"student1": np.log(probabilities)}, None, "600 unlabelled texts", 600)
    found = find_priors(run, config, LABELS, answers, "student1", 1.0)
    assert bool(found) == is_fitted
    if found:
        assert found.method == "estimated on 600 unlabelled texts, without labels"


@pytest.mark.parametrize(("labels", "is_fitted"), [("auto", False), ("neighbours", True)])
def test_shares_that_labels_have_spread_with_do_not_count_twice(labels, is_fitted):
    probabilities, _ = world([0.8, 0.1, 0.1])
    run = prepared(BALANCED, unlabeled=None)
    run.engine.soft_labels = "some"
    config = make_settings("minilm", f"propagation.labels={labels}")
    answers = Answers({"student1": np.log(probabilities)}, None, "600 unlabelled texts", 600)
    assert bool(find_priors(run, config, LABELS, answers, "student1", 1.0)) == is_fitted


def test_the_temperature_comes_first():
    probabilities, _ = world([0.8, 0.1, 0.1])
    config, run = make_settings("minilm"), prepared(BALANCED, unlabeled=None)
    found = [
        find_priors(
            *(run, config, LABELS, Answers({"s": t * np.log(probabilities)}, None, "", 600)),
            *("s", t),
        )
        for t in (1.0, 2.0)
    ]
    assert found[0].shares == pytest.approx(found[1].shares)


def test_the_distance_of_shares():
    assert distance(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0
    assert distance(np.array([0.5, 0.5]), np.array([0.4, 0.6])) == pytest.approx(0.1)


def test_a_damaged_setting_is_an_error_of_the_configuration():
    with pytest.raises(ConfigError, match="must be str or dict"):
        make_settings("minilm", "training.class_prior={fruit = 'x'}")
