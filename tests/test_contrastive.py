"""The second space that labels spread in: a copy of the encoder, tuned on labelled pairs."""

import numpy as np
import pytest
import torch

from nanonet.models.backbones import Backbone
from nanonet.models.encoders import wrap_model
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training import contrastive, spreading
from nanonet.training.checkpoint import list_checkpoints, load_soft_labels
from nanonet.training.contrastive import contrastive_copy, pair_loss
from nanonet.training.evaluation import embed
from nanonet.training.propagation import propagate
from nanonet.training.train import train
from test_engine import FP32
from test_resume import interrupted
from test_training import contents
from tiny import (
    bert_config,
    make_model,
    make_settings,
    make_tables,
    make_texts,
    make_tokenizer,
    modernbert_config,
)


def test_the_loss_of_pairs_by_hand():
    vectors = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    half = 0.5**0.5
    loss = pair_loss(vectors, torch.tensor([0, 0, 1]))
    # within the class: cosine 0 instead of 1; between classes: twice cosine 0.71 instead of 0
    assert loss.item() == pytest.approx(1.0 + half**2)
    assert pair_loss(vectors, torch.tensor([1, 0, 1])).item() == pytest.approx(
        (1 - half) ** 2 + (0.0 + half**2) / 2
    )


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_pairs_of_one_kind_only(labels):
    vectors = torch.eye(3, requires_grad=True)
    loss = pair_loss(vectors, torch.tensor(labels))
    assert loss.item() == (3.0 if labels == [0, 0, 0] else 0.0) / 3.0
    loss.backward()
    assert torch.isfinite(vectors.grad).all()


def test_gradients_of_pairs_do_not_hang_on_chance():
    torch.manual_seed(0)
    vectors, labels = torch.randn(16, 384, requires_grad=True), torch.arange(16) % 4

    def gradient():
        (found,) = torch.autograd.grad(pair_loss(vectors, labels), vectors)
        return found

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradient()
        first = gradient()
        assert all(torch.equal(gradient(), first) for _ in range(50))
    finally:
        torch.set_num_threads(threads)


def rows_of(texts):
    tokenizer = TextTokenizer(make_tokenizer().backend_tokenizer.to_str(), 16)
    return list(tokenizer.encode(texts).ids)


def gap(learner, rows, labels) -> float:
    """How much nearer texts of a class are to each other than to others."""
    vectors = embed(learner, rows, FP32)
    cosines, same = vectors @ vectors.T, labels[:, None] == labels[None]
    return float(cosines[same].mean() - cosines[~same].mean())


@pytest.mark.parametrize("model", [bert_config, modernbert_config])
def test_a_copy_tells_classes_apart_and_the_encoder_stays(model, monkeypatch):
    monkeypatch.setattr(contrastive, "RATE", 5e-3)  # random weights have far to go
    backbone = Backbone("tiny", wrap_model(make_model(model())), "", "mean", "")
    before = {name: p.detach().clone() for name, p in backbone.encoder.named_parameters()}
    texts, labels = make_texts(6)
    rows, labels = rows_of(texts), np.array(labels)

    def tuned(steps: int):
        config = make_settings("in memory", f"propagation.contrastive_steps={steps}")
        return contrastive_copy(backbone, rows, labels, config, FP32)

    first, none = tuned(30), tuned(0)
    torch.rand(3)  # another state of chance
    again = tuned(30)
    for name, parameter in backbone.encoder.named_parameters():
        assert torch.equal(parameter, before[name])
    own = dict(first.encoder.named_parameters())
    for name, parameter in again.encoder.named_parameters():
        assert torch.equal(parameter, own[name])
    shared = {id(p) for p in backbone.encoder.parameters()}
    changed = {name for name in before if not torch.equal(own[name], before[name])}
    frozen = {name for name, p in own.items() if id(p) in shared}
    assert frozen
    assert not changed & frozen
    assert any("layers" in name and name.endswith("weight") for name in changed)
    assert not first.training
    assert gap(first, rows, labels) > gap(none, rows, labels) + 0.1


def test_labels_spread_in_both_spaces(tmp_path, tiny_bert_folder, monkeypatch):
    seen = []

    def spy(vectors, labels, *rest):
        seen.append(vectors)
        return propagate(vectors[: len(labels)], labels, vectors[len(labels) :], 3, rest[1])

    monkeypatch.setattr(spreading, "label_texts", spy)
    monkeypatch.setattr(contrastive, "RATE", 5e-3)
    for steps in (0, 1, 3):
        config = make_settings(tiny_bert_folder, f"propagation.contrastive_steps={steps}")
        train(config, make_tables, tmp_path / f"run-{steps}")
    one, less, two = seen
    assert (one.shape[1], two.shape[1]) == (32, 64)
    np.testing.assert_allclose(two[:, :32] * 2**0.5, one, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1.0, atol=1e-5)
    assert np.array_equal(less[:, :32], two[:, :32])
    assert np.abs(less[:, 32:] - two[:, 32:]).max() > 1e-3  # the second is the tuned one


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_run_that_tunes_a_copy_is_resumed_to_the_bit(tmp_path, tiny_bert_folder, step):
    config = make_settings(tiny_bert_folder, "propagation.contrastive_steps=3", "views.dropout=0.2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(config, make_tables, whole)
    interrupted(config, parts, step)
    resumed = train(config, make_tables, parts, mode="resume")
    assert resumed["weights_sha256"] == expected["weights_sha256"]
    ours, theirs = (list_checkpoints(path / "checkpoints")[-1] for path in (parts, whole))
    assert contents(ours)["trained.safetensors"] == contents(theirs)["trained.safetensors"]
    found = [load_soft_labels(path).probabilities for path in (ours, theirs)]
    assert np.array_equal(*found)
