import numpy as np
import pytest

from nanonet.models.backbones import load_backbone, offline_minilm
from nanonet.tasks import tokenization
from nanonet.tasks.tokenization import TextTokenizer
from tiny import SPECIAL, WORDS, make_tokenizer


def tokenizer_json() -> str:
    return make_tokenizer().backend_tokenizer.to_str()


def test_ids_special_tokens_and_order():
    encoded = TextTokenizer(tokenizer_json(), 16).encode(["Iron lake", "", "zinc"])
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    assert [row.tolist() for row in encoded.ids] == [
        [2, vocabulary["iron"], vocabulary["lake"], 3],
        [2, 3],
        [2, vocabulary["zinc"], 3],
    ]
    assert encoded.lengths.tolist() == [4, 2, 3]
    assert encoded.ids[0].dtype == np.int64
    assert (encoded.truncated, encoded.unknown_share) == (0, 0.0)


def test_long_texts_are_cut_and_counted_and_keep_their_last_token():
    encoded = TextTokenizer(tokenizer_json(), 6).encode(["iron " * 4, "iron " * 5, "iron " * 500])
    assert encoded.lengths.tolist() == [6, 6, 6]
    assert all(row[0] == 2 and row[-1] == 3 for row in encoded.ids)
    assert encoded.truncated == 2


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_ids_alone_are_those_of_encode(monkeypatch, at_once):
    monkeypatch.setattr(tokenization, "TEXTS_AT_ONCE", at_once)
    tokenizer = TextTokenizer(tokenizer_json(), 6)
    texts = ["Iron lake", "", "zinc " * 9, "what", "old tin"]
    ids = tokenizer.ids(texts)
    assert [row.tolist() for row in ids] == [row.tolist() for row in tokenizer.encode(texts).ids]
    assert ids[0].dtype == np.int64
    assert tokenizer.ids([]) == []
    assert tokenizer.size == len(SPECIAL) + len(WORDS)


def test_share_of_unknown_tokens():
    encoded = TextTokenizer(tokenizer_json(), 16).encode(["iron qwert", "qwert zinc"])
    assert encoded.unknown_share == 0.5
    assert TextTokenizer(tokenizer_json(), 16).encode([""]).unknown_share == 0.0


def test_no_padding_even_where_the_file_asks_for_it():
    backend = make_tokenizer().backend_tokenizer
    backend.enable_padding(length=40)
    backend.enable_truncation(3)
    tokenizer = TextTokenizer(backend.to_str(), 12)
    assert tokenizer.encode(["iron lake pond", "zinc"]).lengths.tolist() == [5, 3]


def test_the_saved_tokenizer_cuts_the_same_way():
    tokenizer = TextTokenizer(tokenizer_json(), 5)
    again = TextTokenizer(tokenizer.to_json(), 5)
    texts = ["iron lake pond sea canal", "tin"]
    for a, b in zip(tokenizer.encode(texts).ids, again.encode(texts).ids, strict=True):
        assert (a == b).all()


def test_minilm_texts_beyond_its_baked_in_128_tokens():
    if offline_minilm() is None:
        pytest.skip("the extra 'offline' is not installed")
    tokenizer = TextTokenizer(load_backbone("minilm").tokenizer_json, 256)
    encoded = tokenizer.encode(["word " * 200, "short"])
    assert encoded.lengths.tolist() == [202, 3]
    assert encoded.truncated == 0
    assert tokenizer.encode(["word " * 300]).truncated == 1
