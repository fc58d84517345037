"""Vocabularies cut down to the tokens that a task uses."""

import json

import numpy as np
import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from nanonet.core.errors import BundleError
from nanonet.export.vocabulary import kept_tokens, trim_embeddings, trim_tokenizer
from test_export import random_learner

TEXTS = [
    "the apple and the river were seen in the old town",
    "copper rivers and silver apples, seen in towns; unbelievable",
    "naïve café owners under the bridge, 2026",
    "apples appear unapparently, applied rivers reverberate",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=140, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return with_ends(tokenizer)


def byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet)
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return with_ends(tokenizer)


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return with_ends(tokenizer)


def with_ends(tokenizer: Tokenizer) -> Tokenizer:
    ends = [(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return tokenizer


KINDS = {"WordPiece": word_piece, "BPE": byte_level_bpe, "Unigram": unigram}


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request) -> Tokenizer:
    return KINDS[request.param]()


def counts_of(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    ids = [i for text in texts for i in tokenizer.encode(text).ids]
    return np.bincount(ids, minlength=tokenizer.get_vocab_size())


def trimmed(tokenizer: Tokenizer, texts: list[str], n: int) -> tuple[np.ndarray, Tokenizer]:
    kept = kept_tokens(tokenizer.to_str(), counts_of(tokenizer, texts), n)
    return kept, Tokenizer.from_str(trim_tokenizer(tokenizer.to_str(), kept))


def test_texts_of_kept_tokens_are_encoded_as_before(tokenizer):
    texts = TEXTS[:2]
    used = int((counts_of(tokenizer, texts) > 0).sum())
    kept, small = trimmed(tokenizer, texts, used)
    assert len(kept) == small.get_vocab_size() < tokenizer.get_vocab_size()
    for text in texts:
        old, new = tokenizer.encode(text), small.encode(text)
        assert new.tokens == old.tokens
        assert kept[new.ids].tolist() == old.ids


@pytest.mark.parametrize("n", [0, 5, 20])
def test_nothing_becomes_unknown_that_was_not_before(tokenizer, n):
    kept, small = trimmed(tokenizer, TEXTS[:1], n)
    assert len(kept) < tokenizer.get_vocab_size()
    words = " ".join(TEXTS).split()
    rng = np.random.default_rng(0)
    made = ["".join(rng.choice(words, 2)) for _ in range(300)]
    for text in [*TEXTS, *made, "zürich 東京"]:
        before = tokenizer.encode(text).tokens.count("[UNK]")
        assert small.encode(text).tokens.count("[UNK]") <= before, text


def test_the_most_frequent_come_first_and_ties_go_to_lower_ids():
    tokenizer = word_piece()
    vocabulary = tokenizer.get_vocab()
    longer = sorted((i for t, i in vocabulary.items() if len(t.removeprefix("##")) > 1), key=int)
    longer = [i for i in longer if tokenizer.id_to_token(i) not in SPECIAL]
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    base = set(kept_tokens(tokenizer.to_str(), counts, 0).tolist())
    longer = [i for i in longer if i not in base]  # training breaks ties in any order
    counts[longer[-1]] = 7
    one = set(kept_tokens(tokenizer.to_str(), counts, 1).tolist())
    assert one - base == {longer[-1]}
    everything = kept_tokens(tokenizer.to_str(), counts, 10**6)
    assert everything.tolist() == list(range(len(vocabulary)))
    # Single characters and special tokens have low ids here: they use up places of their own.
    places = 1 + min(longer)
    assert set(kept_tokens(tokenizer.to_str(), counts, places + 1).tolist()) - base == {
        longer[-1],
        longer[0],
    }


def test_bert_s_unused_places_go_and_hard_characters_stay():
    vocabulary = [*SPECIAL, "[unused0]", "[unused1]", "a", "b", "##a", "##b", "ab", "aß", "##ab"]
    model = models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = with_ends(Tokenizer(model))
    kept = kept_tokens(tokenizer.to_str(), np.zeros(len(vocabulary), int), 0)
    left = [vocabulary[i] for i in kept]
    assert "[unused0]" not in left
    assert "ab" not in left
    assert "aß" in left, "the letter ß stands nowhere alone: only this token can spell it"


def test_a_tokenizer_of_whole_words_keeps_all():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "blue": 2}, unk_token="[UNK]"))
    assert kept_tokens(words.to_str(), np.array([0, 5, 0]), 1).tolist() == [0, 1, 2]


def test_other_kinds_are_refused():
    settings = json.loads(word_piece().to_str())
    settings["model"]["type"] = "Other"
    with pytest.raises(BundleError, match="Other tokenizer cannot be trimmed"):
        kept_tokens(json.dumps(settings), np.zeros(3, int), 1)


@pytest.mark.parametrize("folder", ["tiny_bert_folder", "tiny_modernbert_folder"])
def test_trimmed_embeddings_compute_the_same(folder, request):
    learner = random_learner(request.getfixturevalue(folder))
    kept = np.array([0, 1, 2, 3, 4, 7, 9, 12, 20, 21])
    small, table = trim_embeddings(learner, kept)
    assert len(small.get_parameter(table)) == len(kept)
    new = torch.tensor([[2, 6, 8, 5, 9, 3]])
    mask = torch.ones_like(new)
    with torch.inference_mode():
        theirs = learner(torch.from_numpy(kept)[new], mask)
        assert torch.equal(small(new, mask), theirs)
    fewer = (int(learner.encoder.config.vocab_size) - len(kept)) * learner.encoder.hidden_size
    assert learner.total_count() - small.total_count() == fewer


def test_a_padding_token_that_would_move_is_refused(tiny_bert_folder):
    learner = random_learner(tiny_bert_folder)
    with pytest.raises(BundleError, match="padding token"):
        trim_embeddings(learner, np.array([1, 2, 3]))
