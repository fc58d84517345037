"""Where a summarizer's heads start: what held-out documents bear out, and no more."""

import json
from unittest import mock

import numpy as np
import pytest
import torch

from nanonet.export import load_cohort
from nanonet.models.heads import LinearHead
from nanonet.tasks.base import FEATURES
from nanonet.tasks.documents import join_sentences
from nanonet.tasks.windows import DocumentEncoder
from nanonet.training.device import Hardware
from nanonet.training.evaluation import predict_logits
from nanonet.training.run_folder import RunFolder
from nanonet.training.sentences import FEW, Regression, Start, fit_start
from nanonet.training.step import make_chunks
from nanonet.training.train import train
from runs import succeed
from stories import flags, make_stories, write_stories
from test_summarization_runs import make_settings, make_tables, same_scores

WIDTH = 6


def make_documents(count: int, weights, vector_weights, seed: int = 0):
    """Return features, vectors and labels of documents that follow a logistic regression."""
    rng = np.random.default_rng(seed)
    features, vectors, labels = [], [], []
    for _ in range(count):
        n = int(rng.integers(6, 20))
        own, vector = rng.random((n, FEATURES)), rng.normal(size=(n, WIDTH))
        own -= own.mean(0)
        vector /= np.linalg.norm(vector, axis=1, keepdims=True)
        logits = own @ weights + vector @ vector_weights
        features.append(own)
        vectors.append(vector)
        labels.append((rng.random(n) < 1 / (1 + np.exp(-logits))).astype(np.int64))
    return features, vectors, labels


def test_vectors_that_say_nothing_are_left_out():
    weights = np.zeros(FEATURES)
    weights[8] = 8.0
    start = fit_start(*make_documents(30, weights, np.zeros(WIDTH)), seed=0)
    assert not start.uses_vectors
    assert not start.vectors.any()
    assert start.features[8] > 1.0
    assert start.losses["features"] <= start.losses["encoder"] + 0.1
    assert "nothing is trained" in start.notice()
    assert start.note()["encoder"] is False


def test_vectors_that_say_something_are_used():
    weights, direction = np.zeros(FEATURES), np.zeros(WIDTH)
    weights[8], direction[2] = 4.0, 9.0
    start = fit_start(*make_documents(60, weights, direction), seed=0)
    assert start.uses_vectors
    assert start.losses["encoder"] < start.losses["features"]
    assert start.vectors.argmax() == 2
    assert start.features[8] > 1.0
    assert start.notice() == ""


def test_few_documents_weigh_few_features():
    weights = np.zeros(FEATURES)
    weights[list(FEW)] = 3.0
    start = fit_start(*make_documents(6, weights, np.zeros(WIDTH)), seed=0)
    assert set(np.flatnonzero(start.features)) <= set(FEW)


def test_many_documents_weigh_all_features_where_that_helps():
    weights = np.zeros(FEATURES)
    weights[4] = 8.0
    start = fit_start(*make_documents(80, weights, np.zeros(WIDTH)), seed=0)
    assert start.features.argmax() == 4
    assert start.note()["features"] == list(range(FEATURES))


def test_a_single_document_is_taken_with_the_greatest_caution():
    start = fit_start(*make_documents(1, np.ones(FEATURES), np.ones(WIDTH)), seed=0)
    assert not start.uses_vectors
    assert start.losses == {}
    assert start.regression.strength == 0.001


def test_documents_that_are_all_summary_do_not_break_a_fold():
    features, vectors, labels = make_documents(3, np.zeros(FEATURES), np.zeros(WIDTH))
    labels = [np.ones_like(labels[0]), np.ones_like(labels[1]), np.zeros_like(labels[2])]
    start = fit_start(features, vectors, labels, seed=0)
    assert np.isfinite(start.features).all()
    assert np.isfinite(start.bias)


def test_other_learners_fit_the_regression_that_was_chosen():
    weights, direction = np.zeros(FEATURES), np.zeros(WIDTH)
    weights[8], direction[2] = 4.0, 9.0
    first = fit_start(*make_documents(60, weights, direction), seed=0)
    features, vectors, labels = make_documents(60, weights, np.zeros(WIDTH), seed=1)
    other = fit_start(features, vectors, labels, seed=0, like=first)
    assert other.uses_vectors
    assert other.regression is first.regression
    assert other.losses == {}


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_head_gives_what_it_starts_from(scale):
    rng = np.random.default_rng(0)
    head = LinearHead(WIDTH, 1, True, scale, FEATURES)
    weights, own = rng.normal(size=WIDTH), rng.normal(size=FEATURES)
    head.start_from(weights, own, -0.7)
    vectors, features = rng.normal(size=(5, WIDTH)), rng.normal(size=(5, FEATURES))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = head(torch.tensor(vectors).float(), torch.tensor(features).float())[:, 0]
    expected = unit @ weights + features @ own - 0.7
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_run_whose_encoder_brings_nothing_trains_nothing(tiny_bert_folder, tmp_path):
    data = write_stories(tmp_path)
    one = (data / "labeled.jsonl").read_text().splitlines(keepends=True)[0]
    (data / "one.jsonl").write_text(one)  # nothing to hold out
    files = ["--labeled", data / "one.jsonl", "--unlabeled", data / "unlabeled.jsonl"]
    command = ["train", "--task", "summarization", *files, "--backbone", tiny_bert_folder]
    more = flags(summarization__start=True, training__steps=5)
    done = succeed(*command, *more, "--out", tmp_path / "run")
    assert "nothing is trained" in done.err + done.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"]
    assert summary["start"]["encoder"] is False
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()
    tensors = load_heads(tmp_path / "run")
    assert not tensors["linear.weight"].any()
    assert tensors["feature_weights"].any()
    succeed("export", tmp_path / "run", "--out", tmp_path / "bundle")
    assert (tmp_path / "bundle" / "model.onnx").stat().st_size < 10_000  # no encoder
    same_scores(tmp_path / "run", tmp_path / "bundle", stories_to_score())
    does_not_run_its_encoder(tmp_path / "run")
    succeed("export", tmp_path / "run", "--out", tmp_path / "int8", "--quantize", "int8")
    text = "One apple fell. Two pears stood there. Nobody came."
    assert succeed("predict", tmp_path / "bundle", text).out.strip()


def does_not_run_its_encoder(run):
    """Check that logits are what the whole learner gives, without its encoder."""
    folder = RunFolder(run)
    learner = load_cohort(folder)["student1"]
    config, _ = folder.read_config()
    encoder = DocumentEncoder(folder.read_tokenizer(), config.data.max_length, config.summarization)
    rows = encoder.encode(stories_to_score()).ids
    hardware = Hardware("cpu", "fp32", "eager", 1)
    with torch.inference_mode():
        whole = learner.eval().read(make_chunks(rows, 0.1, "cpu")).logits.numpy()
    with mock.patch.object(learner.encoder, "run_layers", side_effect=AssertionError):
        np.testing.assert_array_equal(predict_logits(learner, rows, hardware), whole)


def stories_to_score():
    return [join_sentences(texts) for texts, _ in make_stories(6, seed=4, longest=40)]


def load_heads(run):
    return load_cohort(RunFolder(run))["student1"].head.state_dict()


def test_heads_start_from_the_regression_and_then_learn(tiny_bert_folder, tmp_path, monkeypatch):
    from nanonet.training import documents

    def with_vectors(features, vectors, labels, seed, like=None):
        chosen = Start(features[0], vectors[0], 0.0, Regression(FEW, 1.0, 1.0), {})
        return fit_start(features, vectors, labels, seed, like or chosen)

    monkeypatch.setattr(documents, "fit_start", with_vectors)
    config = make_settings(tiny_bert_folder, summarization__start=True, training__steps=4)
    summary = train(config, make_tables, tmp_path / "run")
    assert summary["start"]["encoder"] is True
    assert summary["steps"] == 4
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert rows
    whole = load_heads(tmp_path / "run")["linear.weight"]
    assert whole.abs().max() > 0
    again = train(config, make_tables, tmp_path / "again")
    assert again["weights_sha256"] == summary["weights_sha256"]
