"""Labels on which the teacher's space and the texts' tokens agree."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import labels_reference as reference
from nanonet.core.config import PropagationConfig
from nanonet.training import co_training
from nanonet.training.co_training import View, co_train, label_texts, tf_idf
from nanonet.training.names import NameView
from nanonet.training.propagation import Combined, combine, propagate

CLASSES, LABELED, UNLABELED = 3, 12, 300


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_texts(kinds, telling, rng):
    """Return twelve tokens of 60 for each text; each is one of its class's ten by this chance."""
    own = rng.random((len(kinds), 12)) < telling
    tokens = rng.integers(0, 60, (len(kinds), 12))
    return np.where(own, 10 * kinds[:, None] + rng.integers(0, 10, own.shape), tokens)


@pytest.fixture
def data():
    """Return vectors that tell classes with much noise, the classes, and a random generator."""
    rng = np.random.default_rng(0)
    kinds = np.arange(LABELED + UNLABELED) % CLASSES
    vectors = np.eye(8)[kinds] + 0.6 * rng.normal(size=(len(kinds), 8))
    return unit(vectors), kinds, rng


def start_of(vectors, kinds):
    labeled, labels, unlabeled = vectors[:LABELED], kinds[:LABELED], vectors[LABELED:]
    config = PropagationConfig(neighbours=10)
    return combine(
        propagate(labeled, labels, unlabeled, CLASSES, config), labeled, labels, unlabeled
    )


def right(probabilities, kinds):
    return float((probabilities.argmax(1) == kinds[LABELED:]).mean())


def test_tokens_and_pairs_that_two_texts_have():
    counts = tf_idf([np.array([5, 6, 5]), np.array([5, 6]), np.array([7, 5])])
    # 5, 6 and the pair (5, 6) occur in two texts; 7, (6, 5) and (7, 5) in one; one is in all.
    assert counts.shape == (3, 4)
    assert (counts.getnnz(axis=1) == [4, 4, 2]).all()
    assert tf_idf([np.array([1]), np.array([2])]).shape == (2, 1)  # nothing in common
    np.testing.assert_allclose(
        np.sort(counts.toarray()),
        np.sort(reference.tf_idf([[5, 6, 5], [5, 6], [7, 5]]).numpy()),
        atol=1e-6,
    )


def test_it_is_what_the_reference_computes(data):
    vectors, kinds, rng = data
    texts = make_texts(kinds, 0.3, rng)
    start = start_of(vectors, kinds)
    found = co_train(start, vectors, tf_idf(list(texts)), kinds[:LABELED], 0)
    places = torch.from_numpy(vectors[:LABELED]), torch.from_numpy(vectors[LABELED:])
    wanted = reference.co_train(
        torch.from_numpy(start.probabilities),
        start.agreement,
        places,
        reference.tf_idf(texts.tolist()),
        torch.from_numpy(kinds[:LABELED]),
    )
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-3)
    rank = reference.rank_of_clearness(wanted).numpy()
    assert np.corrcoef(found.confidence, rank)[0, 1] > 0.999


def test_tokens_mend_what_vectors_do_not_tell(data):
    vectors, kinds, rng = data
    start = start_of(vectors, kinds)
    counts = tf_idf(list(make_texts(kinds, 0.6, rng)))
    found = co_train(start, vectors, counts, kinds[:LABELED], 0)
    assert right(found.probabilities, kinds) > right(start.probabilities, kinds) + 0.07
    np.testing.assert_allclose(found.probabilities.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.sort(found.confidence), np.linspace(0, 1, UNLABELED), atol=1e-6)
    sure = found.confidence > 0.5
    assert right(found.probabilities, kinds) < np.mean(
        found.probabilities[sure].argmax(1) == kinds[LABELED:][sure]
    )


def test_tokens_that_tell_nothing_do_no_harm(data):
    vectors, kinds, rng = data
    start = start_of(vectors, kinds)
    counts = tf_idf(list(make_texts(kinds, 0.0, rng)))
    found = co_train(start, vectors, counts, kinds[:LABELED], 0)
    assert right(found.probabilities, kinds) > right(start.probabilities, kinds) - 0.02


def test_an_error_that_the_labels_share_is_mended_by_tokens(data, monkeypatch):
    """A part of one class stands with another, and neighbours and regression agree on it."""
    _, _, rng = data
    kinds = np.arange(LABELED + UNLABELED) % CLASSES
    astray = (np.arange(len(kinds)) >= LABELED) & (kinds == 0) & (rng.random(len(kinds)) < 0.4)
    near = np.where(astray, 1, kinds)  # but for a direction of their own
    vectors = np.eye(8)[near] + 0.4 * np.eye(8)[5] * astray[:, None]
    vectors = unit(vectors + 0.08 * rng.normal(size=vectors.shape))
    start, counts = start_of(vectors, kinds), tf_idf(list(make_texts(kinds, 0.8, rng)))
    assert start.agreement > 0.95
    assert right(start.probabilities, kinds) < 0.9
    given = (start, vectors, counts, kinds[:LABELED], 0)
    assert right(co_train(*given).probabilities, kinds) > 0.97
    monkeypatch.setattr(co_training, "_agreement_alone", lambda *_: 0.0)
    assert right(co_train(*given).probabilities, kinds) < 0.9


def test_how_common_classes_are_counts_where_it_is_far_from_even():
    rng = np.random.default_rng(0)
    # Even classes to which texts belong with nine chances in ten, and their shares.
    likely = np.full((CLASSES, CLASSES), 0.05) + 0.85 * np.eye(CLASSES)

    def added(*shares, agreement=0.9):
        kinds = rng.choice(CLASSES, 3000, p=shares)
        said = np.array([rng.choice(CLASSES, p=likely[kind]) for kind in kinds])
        return co_training._how_common(likely[said], agreement)

    np.testing.assert_allclose(np.exp(added(0.7, 0.2, 0.1)) / CLASSES, (0.7, 0.2, 0.1), atol=0.03)
    assert (added(0.4, 0.3, 0.3) == 0).all()
    assert (added(0.7, 0.2, 0.1, agreement=0.8) == 0).all()  # who tells it is often wrong
    # Few texts tell little of it.
    few = np.exp(co_training._how_common(likely[np.zeros(10, dtype=int)], 1.0))
    assert few.max() < 1.2


def test_a_rare_class_does_not_take_the_texts_of_others(data):
    _, _, rng = data
    shares = (0.65, 0.3, 0.05)
    hidden = rng.choice(CLASSES, UNLABELED, p=shares)
    kinds = np.concatenate([np.arange(LABELED) % CLASSES, hidden])
    vectors = unit(np.eye(8)[kinds] + 0.55 * rng.normal(size=(len(kinds), 8)))
    start = start_of(vectors, kinds)
    counts = tf_idf(list(make_texts(kinds, 0.4, rng)))
    found = co_train(start, vectors, counts, kinds[:LABELED], 0).probabilities
    taken = float((found.argmax(1) == 2).mean())
    assert abs(taken - 0.05) < abs((start.probabilities.argmax(1) == 2).mean() - 0.05)
    assert right(found, kinds) > right(start.probabilities, kinds) + 0.05


def test_the_seed_decides(data):
    vectors, kinds, rng = data
    counts = tf_idf(list(make_texts(kinds, 0.3, rng)))
    start = start_of(vectors, kinds)
    one, again, other = (
        co_train(start, vectors, counts, kinds[:LABELED], seed).probabilities for seed in (1, 1, 2)
    )
    assert (one == again).all()
    assert (one != other).any()


def test_nobody_judges_what_they_were_taught(data):
    _, kinds, rng = data
    labels = kinds[:LABELED]
    taught: list[set[int]] = []
    asked: list[set[int]] = []

    class Spy:
        def fit(self, rows, classes):
            assert (classes[:LABELED] == labels).all()
            taught.append({int(i) for i in rows[:, 0]} - set(range(LABELED)))
            return self

        def predict_proba(self, rows):
            asked.append({int(i) for i in rows[:, 0]})
            return np.full((len(rows), CLASSES), 1 / CLASSES)

    rows = np.arange(LABELED + UNLABELED)[:, None]
    found = rng.dirichlet(np.ones(CLASSES), UNLABELED)
    co_training._out_of_fold(View(rows, Spy), labels, found, 0.5, np.random.default_rng(0))
    assert len(taught) == co_training.FOLDS
    assert all(not t & a for t, a in zip(taught, asked, strict=True))
    assert set().union(*asked) == set(range(LABELED, LABELED + UNLABELED))
    # Half of each class's texts teach, each in all folds but its own.
    assert sum(map(len, taught)) == pytest.approx(0.5 * UNLABELED * (co_training.FOLDS - 1), abs=8)

    taught.clear()
    view = View(rows, Spy, most=20)
    co_training._out_of_fold(view, labels, found, 0.5, np.random.default_rng(0))
    assert [len(t) for t in taught] == [20] * co_training.FOLDS


def test_the_surest_of_each_class():
    found = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    assert co_training._surest(found, 0.5).tolist() == [True, False, True, False, True]


@pytest.mark.parametrize("unlabeled", [1, 2, 5])
def test_hardly_any_texts(data, unlabeled):
    vectors, kinds, rng = data
    rows = LABELED + unlabeled
    start = Combined(np.full((unlabeled, CLASSES), 1 / CLASSES), 1.0)
    counts = tf_idf(list(make_texts(kinds[:rows], 0.3, rng)))
    found = co_train(start, vectors[:rows], counts, kinds[:LABELED], 0)
    assert np.isfinite(found.probabilities).all()
    assert found.probabilities.shape == (unlabeled, CLASSES)


def test_settings_say_who_has_a_say(data):
    vectors, kinds, rng = data
    texts = list(make_texts(kinds, 0.3, rng))
    found = {
        name: label_texts(
            vectors, kinds[:LABELED], texts, PropagationConfig(neighbours=10, labels=name), 3
        )
        for name in ("auto", "neighbours", "combined", "co-trained")
    }
    labeled, labels, unlabeled = vectors[:LABELED], kinds[:LABELED], vectors[LABELED:]
    alone = propagate(labeled, labels, unlabeled, CLASSES, PropagationConfig(neighbours=10))
    both = start_of(vectors, kinds)
    trained = co_train(both, vectors, tf_idf(texts), labels, 3)
    np.testing.assert_array_equal(found["neighbours"].probabilities, alone.probabilities)
    np.testing.assert_allclose(found["combined"].probabilities, both.probabilities, atol=1e-6)
    for name in ("auto", "co-trained"):
        np.testing.assert_array_equal(found[name].probabilities, trained.probabilities)
        np.testing.assert_array_equal(found[name].confidence, trained.confidence)


def names_of(kinds, noise, rng):
    """Return similarities to names that tell classes with this noise."""
    near = np.eye(CLASSES)[kinds] + noise * rng.normal(size=(len(kinds), CLASSES))
    return NameView((near / near.std()).astype(np.float32), LABELED)


def test_names_that_tell_more_than_vectors_and_tokens_are_heard(data):
    _, kinds, rng = data
    vectors = unit(np.eye(8)[kinds] + 1.2 * rng.normal(size=(len(kinds), 8)))
    start, counts = start_of(vectors, kinds), tf_idf(list(make_texts(kinds, 0.1, rng)))
    without, heard, unheard = (
        right(co_train(start, vectors, counts, kinds[:LABELED], 0, names).probabilities, kinds)
        for names in (None, names_of(kinds, 0.2, rng), names_of(rng.permutation(kinds), 0.2, rng))
    )
    assert heard > without + 0.1
    assert unheard > without - 0.05


def test_names_are_trusted_by_the_labelled_texts_that_they_tell(data):
    _, kinds, rng = data
    labels, names = kinds[:LABELED], names_of(kinds, 0.0, rng)
    found = np.eye(CLASSES)[kinds[LABELED:]] * 0.9 + 0.1 / 3

    def trust(own, known=LABELED):
        view = NameView(names.similarities, known)
        return co_training._by_names(view, own, found, 1.0, np.random.default_rng(0))[1]

    assert trust(labels) == pytest.approx(1.0)
    wrong = np.concatenate([labels[:6], (labels[6:] + 1) % CLASSES])
    assert 0.5 < trust(wrong) < 0.85
    assert trust(wrong, known=6) > trust(wrong) + 0.1  # the others are rows of names


@pytest.mark.parametrize(
    ("agreement", "trust", "own"),
    [
        (0.7, 0.6, 0.97),  # 0.75 of the names' voice is heard
        (0.7, 0.95, 0.95),
        (0.7, 0.69, 0.7),
        (0.37, 0.47, 0.97),  # better than tokens, and bad
    ],
)
def test_the_labels_own_voice_is_trusted_no_further_than_names_that_are_heard(
    data, monkeypatch, agreement, trust, own
):
    _, kinds, rng = data
    vectors = unit(np.eye(8)[kinds] + 1.2 * rng.normal(size=(len(kinds), 8)))
    start, counts = start_of(vectors, kinds), tf_idf(list(make_texts(kinds, 0.1, rng)))
    start = replace(start, agreement=0.97)
    trusted = []
    original = co_training.logits_at

    def spy(probabilities, confidence):
        if probabilities is start.probabilities:
            trusted.append(confidence)
        return original(probabilities, confidence)

    monkeypatch.setattr(co_training, "logits_at", spy)
    said = np.eye(CLASSES)[kinds[LABELED:]]
    monkeypatch.setattr(co_training, "_by_names", lambda *_: (said, trust))
    monkeypatch.setattr(co_training, "agreement_of", lambda *_: agreement)
    co_train(start, vectors, counts, kinds[:LABELED], 0, names_of(kinds, 0.2, rng))
    assert trusted[1:] == [own] * len(co_training.SHARES)


def test_names_where_all_texts_are_taken_for_one_class(data):
    _, kinds, rng = data
    found = np.tile([0.8, 0.1, 0.1], (UNLABELED, 1))
    said, trust = co_training._by_names(
        names_of(kinds, 0.2, rng), kinds[:LABELED], found, 0.5, np.random.default_rng(0)
    )
    assert np.isfinite(said).all()
    assert 0.0 < trust < 1.0
