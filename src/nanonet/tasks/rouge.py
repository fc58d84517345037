"""ROUGE through the package ``rouge-score``, and the greedy oracle. No torch.

F1 with stemming; ROUGE-L is the summary-level one, over sentences ("rougeLsum").
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.errors import MissingExtraError
from nanonet.tasks.budgets import Budget, choose
from nanonet.tasks.documents import EXTRA

METRICS = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougeLsum"}  # ours: rouge-score's
KNOWN_WORDS = 100_000  # whose stems are kept
SMALLEST_GAIN = 1e-9  # rounding must not add a sentence that brings nothing
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Stemmer:
    stem: Callable[[str], str]


class Rouge:
    """Scores summaries against references.

    Raises:
        MissingExtraError: rouge-score is not installed.
    """

    def __init__(self) -> None:
        try:
            from nltk.stem.porter import PorterStemmer
            from rouge_score import rouge_scorer, tokenize
        except ImportError as error:
            raise MissingExtraError("ROUGE", EXTRA) from error
        self._split: Any = tokenize.tokenize
        # Stemming took half of the time, and most words have been seen before.
        self._stemmer = _Stemmer(lru_cache(KNOWN_WORDS)(PorterStemmer().stem))
        self._scorer: Any = rouge_scorer.RougeScorer(list(METRICS.values()), tokenizer=self)

    def score(self, reference: Sequence[str], summary: Sequence[str]) -> Floats:
        """Return the F1 of each of `METRICS` of sentences against a reference's sentences, (3,)."""
        found = self._scorer.score(*("\n".join(_lines(s)) for s in (reference, summary)))
        return np.array([found[name].fmeasure for name in METRICS.values()])

    def tokenize(self, text: str) -> list[str]:
        """Return the stemmed words that ROUGE compares; letters other than a-z are no words."""
        return list(self._split(text, self._stemmer))

    def oracle(
        self,
        reference: Sequence[str],
        sentences: Sequence[str],
        limits: tuple[float, float] = (np.inf, np.inf),
    ) -> list[int]:
        """Return the sentences that a greedy search finds closest to a reference, in order.

        Each step adds the sentence that raises the mean of ROUGE-1 and ROUGE-2 F1 most, the earlier
        one where two do; it ends when none does. N-grams across sentences do not count.

        Args:
            reference: its sentences.
            sentences: of the document.
            limits: sentences and words at most.

        Returns:
            Indexes; none where document and reference have no word in common.
        """
        tokens = [self.tokenize(sentence) for sentence in sentences]
        words = np.array([len(sentence.split()) for sentence in sentences], dtype=np.int64)
        sides = [_Overlap(self.tokenize(" ".join(reference)), tokens, n) for n in (1, 2)]
        free = sides[0].counts.sum(1) > 0
        chosen: list[int] = []
        best, used = 0.0, 0
        while len(chosen) < limits[0]:
            left = np.flatnonzero(free & (used + words <= limits[1]))
            if not len(left):
                break
            values = sides[0].f1(left) + sides[1].f1(left)
            place = int(values.argmax())
            if values[place] <= best + SMALLEST_GAIN:
                break
            best, pick = float(values[place]), int(left[place])
            chosen.append(pick)
            free[pick] = False
            used += int(words[pick])
            for side in sides:
                side.add(pick)
        return sorted(chosen)


def rouge_of(
    scores: Iterable[NDArray[np.floating[Any]]],
    documents: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    budget: Budget,
    block_trigrams: bool,
) -> Floats:
    """Return the ROUGE (n, 3) of the summaries of n documents that sentence scores make.

    Args:
        scores: of the sentences of each document; see `choose`.
        documents: their sentences.
        references: the sentences of each reference.
        budget: of each summary.
        block_trigrams: see `choose`.

    Raises:
        MissingExtraError: rouge-score is not installed.
    """
    rouge, found = Rouge(), []
    for own, sentences, reference in zip(scores, documents, references, strict=True):
        chosen = choose(own, sentences, budget, block_trigrams)
        found.append(rouge.score(reference, [sentences[i] for i in chosen]))
    return np.stack(found)


class _Overlap:
    """N-grams that a growing choice of sentences has in common with a reference."""

    def __init__(self, reference: list[str], sentences: list[list[str]], n: int) -> None:
        wanted = _ngrams(reference, n)
        columns = {gram: i for i, gram in enumerate(wanted)}
        self.counts = np.zeros((len(sentences), len(columns)))  # only these can match
        for row, tokens in enumerate(sentences):
            for gram, count in _ngrams(tokens, n).items():
                if gram in columns:
                    self.counts[row, columns[gram]] = count
        self._wanted = np.array(list(wanted.values()), dtype=np.float64)
        self._lengths = np.array([max(len(tokens) - n + 1, 0) for tokens in sentences])
        self._held = np.zeros(len(columns))
        self._length = float(self._wanted.sum())

    def f1(self, rows: NDArray[np.int64]) -> Floats:
        """Return the F1 of the choice with each of these sentences added."""
        hits = np.minimum(self._held + self.counts[rows], self._wanted).sum(1)
        scores: Floats = 2 * hits / np.maximum(self._length + self._lengths[rows], 1.0)
        return scores

    def add(self, row: int) -> None:
        """Add a sentence to the choice."""
        self._held += self.counts[row]
        self._length += float(self._lengths[row])


def _lines(sentences: Sequence[str]) -> list[str]:
    """Return sentences without line ends, which would part them."""
    return [" ".join(sentence.split()) for sentence in sentences]


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
