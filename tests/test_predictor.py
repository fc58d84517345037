import numpy as np
import pytest

from nanonet import Predictor
from nanonet.core.errors import DataError
from nanonet.runtime import predictor as module

TEXTS = [
    "the old apple",
    "iron " * 25 + "copper",
    "",
    "river",
    "a pond in the sea with a brook and the canal",
    "silver tin " * 400,
    " \t\n ",
    "unknown wörds 🙂 and \0 bytes",
]


@pytest.fixture(scope="module")
def predictor(bundle) -> Predictor:
    return Predictor.load(bundle, threads=1)


def test_mixed_lengths_come_back_in_order(predictor):
    together = predictor.predict_logits(TEXTS)
    assert together.shape == (len(TEXTS), 3)
    assert together.dtype == np.float32
    for text, row in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(predictor.predict_logits([text])[0], row, atol=1e-4)
    assert len(np.unique(together.round(5), axis=0)) >= 6  # rows that were swapped would show
    np.testing.assert_allclose(predictor.predict_logits(TEXTS[::-1]), together[::-1], atol=1e-4)


@pytest.mark.parametrize(("at_once", "tokens"), [(1, 1), (3, 40), (1000, 10_000)])
def test_neither_blocks_nor_chunks_change_the_result(predictor, monkeypatch, at_once, tokens):
    expected = predictor.predict_logits(TEXTS)
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", at_once)
    monkeypatch.setattr(predictor, "_tokens_per_chunk", tokens)
    np.testing.assert_allclose(predictor.predict_logits(TEXTS), expected, atol=1e-4)


def test_no_texts(predictor):
    assert predictor([]) == []
    assert predictor.predict_proba([]).shape == (0, 3)
    assert predictor.predict_logits([]).shape == (0, 3)


def test_names_are_those_of_the_most_probable_class(predictor):
    names = predictor(TEXTS)
    assert isinstance(names, list)
    best = predictor.predict_proba(TEXTS).argmax(-1)
    assert names == [("fruit", "metal", "water")[i] for i in best]


def test_probabilities(predictor):
    probabilities = predictor.predict_proba(TEXTS)
    assert probabilities.dtype == np.float32
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)
    logits = predictor.predict_logits(TEXTS)
    assert (probabilities.argmax(-1) == logits.argmax(-1)).all()


@pytest.mark.parametrize(
    "texts",
    [tuple(TEXTS), np.array(TEXTS, dtype=object), dict.fromkeys(TEXTS).keys()],
    ids=["tuple", "array", "keys"],
)
def test_other_collections(predictor, texts):
    np.testing.assert_array_equal(predictor.predict_logits(texts), predictor.predict_logits(TEXTS))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "must be a list of texts, not one text"),
        (["a", 3], "text 1 is not text but int"),
        (["a", "b", None], "text 2 is not text but NoneType"),
        ([b"a"], "text 0 is not text but bytes"),
        ([["a"]], "text 0 is not text but list"),
        (["a", "\ud800"], "text 1 holds half of a surrogate pair"),
        (["a", bytearray(b"a")], "text 1 is not text but bytearray"),
        (["a", {"text": "a"}], "text 1 is not text but dict"),
        (b"a text", "must be a list of texts, not bytes"),
        ({"a": "b"}, "must be a list of texts, not dict"),
        (3, "must be a list of texts, not int"),
        (None, "must be a list of texts, not NoneType"),
    ],
)
def test_what_is_no_list_of_texts(predictor, texts, message):
    for method in (predictor, predictor.predict_proba, predictor.predict_logits):
        with pytest.raises(DataError, match=message):
            method(texts)


def test_position_of_a_bad_text_beyond_the_first_block(predictor, monkeypatch):
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    with pytest.raises(DataError, match="text 3 is not text"):
        predictor(["a", "b", "c", 4])


def test_a_very_long_text_is_cut(predictor):
    long = predictor.predict_logits(["apple " * 200_000])
    cut = predictor.predict_logits(["apple " * 30])  # 32 tokens with [CLS] and [SEP]
    np.testing.assert_array_equal(long, cut)


@pytest.mark.parametrize("unit", ["apple ", "a", "\0", "🙂", "\n"])
def test_ten_megabytes(predictor, unit):
    text = unit * (10 * 2**20 // len(unit.encode()))
    assert np.isfinite(predictor.predict_logits(["river", text])).all()


def test_threads(bundle, predictor):
    one = Predictor.load(bundle, threads=2)
    np.testing.assert_allclose(
        one.predict_logits(TEXTS), predictor.predict_logits(TEXTS), atol=1e-5
    )


def test_what_a_predictor_tells_of_itself(predictor):
    assert predictor.labels.values == (0, 1, 2)
    assert predictor.labels.names == ("fruit", "metal", "water")
    assert predictor.manifest.task == "classification"
