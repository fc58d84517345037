"""Documents, windows, budgets, ROUGE and the oracle: what needs no training."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nanonet.core.config import SummarizationConfig
from nanonet.core.errors import ConfigError
from nanonet.core.strict import build
from nanonet.models.heads import pool_units
from nanonet.objectives.functional import logits_distance
from nanonet.tasks import baselines
from nanonet.tasks.base import FEATURES, unit_counts, units_of
from nanonet.tasks.budgets import Budget, choose
from nanonet.tasks.documents import Document, join_sentences, split_text
from nanonet.tasks.rouge import METRICS, Rouge
from nanonet.tasks.windows import (
    UNSCORED,
    DocumentEncoder,
    pad_windows,
    sentence_features,
    window_ranges,
)
from nanonet.training.documents import _unit_truth
from stories import chosen, make_stories, make_story
from tiny import make_tokenizer

CLS, SEP = 2, 3


def make_encoder(max_length: int = 24, **settings: object) -> DocumentEncoder:
    json = make_tokenizer().backend_tokenizer.to_str()
    return DocumentEncoder(json, max_length, build(SummarizationConfig, settings))


# documents


def test_offsets_of_a_text_point_at_its_sentences():
    text = '  Dr. Old went to Washington, D.C. on Jan. 5.  He said "no".\n\nCafé 😀 is new! Why? '
    document = split_text(text, "en")
    assert document.sentences == [
        "Dr. Old went to Washington, D.C. on Jan. 5.",
        'He said "no".',
        "Café 😀 is new!",
        "Why?",
    ]
    assert document.text == text


@pytest.mark.parametrize("text", ["", "  \n\n \t", "\u200b"])
def test_a_text_without_words(text):
    assert len(split_text(text, "en").spans) <= 1
    assert not split_text(text.strip("\u200b"), "en").has_words


def test_joined_sentences_keep_their_places():
    document = join_sentences(["One two", "", "three"])
    assert document.sentences == ["One two", "", "three"]
    assert document.word_counts() == [2, 0, 1]


# windows


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_windows_cover_every_piece_and_fit(overlap):
    rng = np.random.default_rng(0)
    for _ in range(200):
        room = int(rng.integers(5, 30))
        costs = rng.integers(1, room + 1, rng.integers(0, 40)).tolist()
        ranges = window_ranges(costs, room, overlap)
        assert sorted({i for a, b in ranges for i in range(a, b)}) == list(range(len(costs)))
        assert all(a < b and sum(costs[a:b]) <= room for a, b in ranges)
        for (a, b), (c, d) in pairwise(ranges):
            assert a < c <= b < d
            assert sum(costs[c:b]) <= overlap * room


@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_every_token_of_a_long_document_is_in_a_window(pooling):
    sentences, _ = make_story(np.random.default_rng(1), 60)
    sentences[7] = " ".join(["apple"] * 70)  # longer than a window
    sentences[9] = ""
    document = join_sentences(sentences)
    encoder = make_encoder(pooling=pooling)
    encoded = encoder.encode([document])
    assert encoded.truncated == 0
    assert len(encoded.ids) > 10
    seen: dict[int, int] = {}
    for window in encoded.ids:
        assert len(window) <= 24
        assert len(window.units) == len(window.segments) == len(window)
        assert (window.ids[0], window.ids[-1]) == (CLS, SEP)
        assert set(window.units.tolist()) == {-1, *range(len(window.sizes))}
        for sentence, size in zip(window.sentences, window.sizes, strict=True):
            seen[int(sentence)] = max(seen.get(int(sentence), 0), int(size))
    assert sorted(seen) == [i for i in range(60) if i != 9]
    pieces = [int(s) for w in encoded.ids for s in w.sizes[w.sentences == 7]]
    assert sum(pieces) >= 70
    if pooling == "token":
        window = encoded.ids[0]
        assert (window.ids[window.units >= 0] == CLS).all()
        assert (window.units >= 0).sum() == len(window.sizes)


def test_a_short_document_is_one_window_of_what_the_tokenizer_gives():
    document = join_sentences(["The apple is old", "A pear"])
    (window,) = make_encoder().encode([document]).ids
    tokenizer = make_tokenizer()
    assert window.ids.tolist() == tokenizer(document.text)["input_ids"]
    assert window.units.tolist() == [-1, 0, 0, 0, 0, 1, 1, -1]
    assert window.segments.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert window.sizes.tolist() == [4, 2]
    flat = make_encoder(segments=False).encode([document]).ids[0]
    assert not flat.segments.any()


def test_merging_means_over_windows_and_pieces_by_their_tokens():
    sentences = [f"{'apple ' * n}".strip() for n in (5, 50, 4, 6, 3)]
    documents = [join_sentences(sentences), Document("", ()), join_sentences(["", "pear"])]
    encoded = make_encoder().encode(documents)
    counts = unit_counts(encoded.ids)
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(counts.sum())
    merged = encoded.merge(logits)
    assert [len(m) for m in merged] == [5, 0, 2]
    first = encoded.windows_of[0]
    for sentence in range(5):
        pairs, unit = [], 0
        for window in encoded.ids[:first]:
            for own, size in zip(window.sentences, window.sizes, strict=True):
                if own == sentence:
                    pairs.append((logits[unit], size))
                unit += 1
        values, weights = zip(*pairs, strict=True)
        assert merged[0][sentence] == pytest.approx(np.average(values, weights=weights))
    assert merged[2][0] == UNSCORED
    assert merged[2][1] == pytest.approx(logits[-1])


def test_truth_follows_the_sentences_into_their_windows():
    stories = make_stories(4, longest=30)
    encoded = make_encoder().encode([join_sentences(t) for t, _ in stories])
    truth = _unit_truth(encoded, np.concatenate([np.array(y) for _, y in stories]))
    unit = 0
    owners = np.repeat(np.arange(4), encoded.windows_of)
    for owner, window in zip(owners, encoded.ids, strict=True):
        for sentence in window.sentences:
            assert truth[unit] == stories[owner][1][sentence]
            unit += 1
    assert unit == len(truth)
    assert set(_unit_truth(encoded, None)) == {-1}


def test_padded_windows_pool_means_of_their_own_tokens():
    encoded = make_encoder().encode([join_sentences(t) for t, _ in make_stories(3, longest=5)])
    windows = encoded.ids
    arrays = pad_windows(windows)
    rng = np.random.default_rng(0)
    tokens = max(map(len, windows))
    hidden = rng.standard_normal((len(windows), tokens, 4)).astype(np.float32)
    shares = torch.from_numpy(arrays["pooling"])
    mask = torch.from_numpy((np.arange(tokens) < np.array([[len(w)] for w in windows])) * 1)
    pooled = pool_units(torch.from_numpy(hidden), mask, shares).numpy()
    for i, window in enumerate(windows):
        for unit in range(len(window.sizes)):
            expected = hidden[i, : len(window)][window.units == unit].mean(0)
            np.testing.assert_allclose(pooled[i, unit], expected, atol=1e-6)
        np.testing.assert_array_equal(arrays["features"][i, : len(window.sizes)], window.features)
    assert (pooled[:, -1][[len(w.sizes) < shares.shape[1] for w in windows]] == 0).all()


def test_hidden_tokens_leave_a_unit_s_mean_unless_all_are_hidden():
    hidden = torch.tensor([[[1.0], [3.0], [5.0], [9.0]]])
    shares = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]])
    mask = torch.tensor([[0, 1, 0, 0]])
    assert pool_units(hidden, mask, shares)[0, :, 0].tolist() == [3.0, 7.0]


def test_vectors_of_sentences_have_32_bits_under_autocast_too():
    rng = np.random.default_rng(0)
    hidden = torch.from_numpy(rng.normal(size=(2, 5, 4)).astype(np.float32))
    mask, shares = torch.ones(2, 5, dtype=torch.long), torch.full((2, 3, 5), 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool_units(hidden, mask, shares)
    assert found.dtype == torch.float32
    assert torch.equal(found, pool_units(hidden, mask, shares))


def test_units_of_rows():
    counts = np.array([2, 0, 3, 1])
    assert units_of(np.array([2, 0]), counts).tolist() == [2, 3, 4, 0, 1]
    assert units_of(np.array([], dtype=np.int64), counts).tolist() == []
    assert units_of(np.array([1]), np.ones(3, dtype=np.int64)).tolist() == [1]


@pytest.mark.parametrize("n", [0, 1, 2, 5000])
def test_features_are_finite_and_centred(n):
    document = join_sentences([f"word {i}" for i in range(n)])
    ids = np.stack([np.ones(n), np.arange(n)]).astype(np.int64).T.reshape(-1)
    owner = np.repeat(np.arange(n), 2)
    features = sentence_features(document, ids, owner)
    assert features.shape == (n, FEATURES)
    assert (abs(features) <= 1).all()
    if n:
        np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
    if n > 1:
        assert features[0, 0] == pytest.approx(1 - 1 / n)
        assert (np.diff(features[:, 3]) > 0).all()


def test_centrality_is_the_cosine_with_the_mean_tf_idf_vector():
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["old iron iron", "the apple is old", "tin", "the old apple and the iron", "a b c"]
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+")
    vectors = vectorizer.fit_transform(texts).toarray()
    mean = vectors.mean(0)
    expected = vectors @ mean / np.linalg.norm(mean)
    words = [(vectorizer.vocabulary_[w], i) for i, t in enumerate(texts) for w in t.split()]
    ids, owner = (np.array(column) for column in zip(*words, strict=True))
    features = sentence_features(join_sentences(texts), ids, owner)
    for column, values in (
        (7, expected),
        (8, expected / expected.max()),
        (9, np.array([1, 3 / 4, 0, 5 / 6, 0])),
    ):
        np.testing.assert_allclose(features[:, column], values - values.mean(), atol=1e-6)


# one logit as a choice of two


def test_a_single_logit_as_two_is_a_bernoulli():
    z, w = torch.randn(2, 9, 1)
    truth = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, 1])
    two, other = F.pad(z, (1, 0)), F.pad(w, (1, 0))
    torch.testing.assert_close(
        F.cross_entropy(two, truth),
        F.binary_cross_entropy_with_logits(z[:, 0], truth.float()),
    )
    torch.testing.assert_close(two.softmax(-1)[:, 1], z[:, 0].sigmoid())
    p, q = z[:, 0].sigmoid(), w[:, 0].sigmoid()
    by_hand = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean()
    torch.testing.assert_close(logits_distance(two, other, "kl", 1.0), by_hand)


# budgets


SENTENCES = ["a b c d", "e f", "g h i", "a b c x y", ""]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("sentences=2", [2, 3]),
        ("sentences=99", [0, 1, 2, 3]),
        ("words=8", [2, 3]),
        ("words=7", [1, 3]),  # 5, then 2: what does not fit is passed over
        ("words=4", [2]),
        ("words=1", [3]),  # none fits: the best
        ("ratio=0.5", [1, 3]),
        ("ratio=1.0", [0, 1, 2, 3]),
    ],
)
def test_budgets(budget, expected):
    scores = np.array([0.0, -1.0, 1.0, 2.0, 9.0])
    if budget == "words=7":
        scores[2] = -3.0
    if budget == "ratio=0.5":
        scores[2] = -3.0
    assert choose(scores, SENTENCES, Budget.parse(budget)) == expected


def test_equal_scores_take_the_earlier_and_an_empty_document_gives_nothing():
    assert choose(np.zeros(5), SENTENCES, Budget.parse("sentences=2")) == [0, 1]
    assert choose(np.zeros(0), [], Budget.parse("words=5")) == []
    assert choose(np.zeros(2), ["", " "], Budget.parse("words=5")) == []


def test_trigram_blocking():
    scores = np.array([2.0, 0.0, 1.0, 1.5, 9.0])
    assert choose(scores, SENTENCES, Budget.parse("sentences=2")) == [0, 3]
    assert choose(scores, SENTENCES, Budget.parse("sentences=2"), block_trigrams=True) == [0, 2]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("3", ["budget '3'", "sentences=3"]),
        ("sentence=3", ["did you mean 'sentences'"]),
        ("words=ten", ["'ten' is no number"]),
        ("words=0", ["a whole number from 1"]),
        ("sentences=1.5", ["a whole number from 1"]),
        ("sentences=nan", ["a whole number from 1"]),
        ("words=inf", ["a whole number from 1"]),
        ("ratio=0", ["above 0 and at most 1"]),
        ("ratio=1.01", ["above 0 and at most 1"]),
        ("ratio=nan", ["above 0 and at most 1"]),
    ],
)
def test_bad_budgets(text, parts):
    with pytest.raises(ConfigError) as caught:
        Budget.parse(text)
    assert all(part in str(caught.value) for part in parts)


# ROUGE and the oracle


def test_rouge_is_the_package_s():
    from rouge_score import rouge_scorer

    reference = ["Apples are old.", "The rivers were seen"]
    summary = ["the river was seen", "an apple is\nold"]
    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=True).score(
        "\n".join(reference), "the river was seen\nan apple is old"
    )
    ours = dict(zip(METRICS, Rouge().score(reference, summary), strict=True))
    assert ours == {
        "rouge1": theirs["rouge1"].fmeasure,
        "rouge2": theirs["rouge2"].fmeasure,
        "rougeL": theirs["rougeLsum"].fmeasure,
    }
    assert Rouge().score(reference, []).tolist() == [0, 0, 0]


def slow_oracle(reference: list[str], sentences: list[str]) -> list[int]:
    """Return the greedy choice by whole ROUGE scores, of sentences that cannot run together."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2"], use_stemmer=True)

    def value(choice: list[int]) -> float:
        found = scorer.score(" ".join(reference), " ".join(sentences[i] for i in choice))
        return found["rouge1"].fmeasure + found["rouge2"].fmeasure

    chosen: list[int] = []
    while True:
        options = [i for i in range(len(sentences)) if i not in chosen]
        values = [value([*chosen, i]) for i in options]
        if not options or max(values) <= (value(chosen) if chosen else 0.0) + 1e-9:
            return sorted(chosen)
        chosen.append(options[int(np.argmax(values))])


def test_the_oracle_finds_what_a_slow_search_finds():
    # One word a sentence: no n-gram runs across sentences that could count for the slow one only.
    sentences = ["apple", "pear", "iron", "tin", "apple"]
    assert Rouge().oracle(["apple and pear"], sentences) == slow_oracle(
        ["apple and pear"], sentences
    )
    for texts, labels in make_stories(20, seed=5):
        wanted = chosen(texts, labels)
        found = Rouge().oracle(wanted, texts)
        rouge = Rouge()
        assert found == rouge.oracle(wanted, texts)
        best = rouge.score(wanted, [texts[i] for i in found])
        slow = rouge.score(wanted, [texts[i] for i in slow_oracle(wanted, texts)])
        assert best[:2].mean() > slow[:2].mean() - 0.05
        assert best[0] > 0.9


def test_the_oracle_keeps_to_a_budget_and_finds_nothing_where_there_is_nothing():
    rouge = Rouge()
    texts, labels = make_story(np.random.default_rng(3), 30)
    wanted = chosen(texts, labels)
    for budget in ("sentences=2", "words=12", "ratio=0.2"):
        words = [len(text.split()) for text in texts]
        limits = Budget.parse(budget).limits(sum(words))
        found = rouge.oracle(wanted, texts, limits)
        assert 0 < len(found) <= limits[0]
        assert sum(words[i] for i in found) <= limits[1]
    assert rouge.oracle(["zebra"], texts) == []
    assert rouge.oracle([], texts) == []
    assert rouge.oracle(["日本語"], ["日本語"]) == []  # letters that ROUGE does not know


def test_the_oracle_of_equal_sentences_is_the_first():
    assert Rouge().oracle(["apple pear"], ["apple pear"] * 5000) == [0]


# baselines


def test_baselines():
    texts = ["iron", "old apple pear plum", "apple pear", "an apple"]
    budget = Budget.parse("sentences=1")
    assert choose(baselines.lead(texts), texts, budget) == [0]
    assert choose(baselines.longest(texts), texts, budget) == [1]
    assert choose(baselines.centroid(texts), texts, budget) in ([1], [2])
    assert baselines.centroid(["", "?"]).tolist() == [0, 0]
    one, two = baselines.at_random(texts, 0), baselines.at_random(texts, 1)
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, baselines.at_random(texts, 0))
