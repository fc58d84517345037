"""How long a summary may be, and which sentences go into it. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nanonet.core.errors import ConfigError
from nanonet.core.registry import did_you_mean
from nanonet.tasks.labels import quoted

Kind = Literal["sentences", "words", "ratio"]
Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Budget:
    """The length of a summary: so many sentences or words, or a share of the document's words."""

    kind: Kind
    amount: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Return the budget that ``sentences=3``, ``words=100`` or ``ratio=0.46`` means.

        Raises:
            ConfigError: it means none.
        """
        kind, separator, number = text.partition("=")
        kind = kind.strip()
        kinds = get_args(Kind)
        advice = "write sentences=3, words=100 or ratio=0.3"
        if not separator or kind not in kinds:
            hint = did_you_mean(kind, kinds)
            raise ConfigError(f"budget {quoted(text)} is unknown{hint}: {advice}")
        try:
            amount = float(number)
        except ValueError:
            shown = quoted(number)
            raise ConfigError(f"budget {quoted(text)}: {shown} is no number; {advice}") from None
        whole = kind != "ratio"
        if not (amount >= 1 and amount.is_integer() if whole else 0.0 < amount <= 1.0):
            wanted = "a whole number from 1" if whole else "above 0 and at most 1"
            raise ConfigError(f"budget {quoted(text)}: the number must be {wanted}")
        return cls(kind, amount)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.kind}={self.amount:g}"

    def limits(self, words: int) -> tuple[float, float]:
        """Return how many sentences and how many words a document of so many words may give."""
        if self.kind == "sentences":
            return self.amount, np.inf
        return np.inf, self.amount if self.kind == "words" else self.amount * words


def choose(
    scores: Scores, sentences: Sequence[str], budget: Budget, block_trigrams: bool = False
) -> list[int]:
    """Return the sentences of a summary, in the document's order.

    They are taken by score, the earlier first where scores are equal; what would exceed the budget
    is passed over. Where no sentence fits, the best one is taken: a summary is empty only where the
    document is.

    Args:
        scores: of each sentence, (n,).
        sentences: their texts.
        budget: of the whole summary.
        block_trigrams: pass over a sentence that has three words in a row in common with one taken
            before.
    """
    words = [len(sentence.split()) for sentence in sentences]
    most_sentences, most_words = budget.limits(sum(words))
    chosen: list[int] = []
    used, seen = 0, set[tuple[str, ...]]()
    order = [int(i) for i in np.argsort(-scores, kind="stable") if words[i]]
    for i in order:
        if len(chosen) >= most_sentences:
            break
        if used + words[i] > most_words:
            continue
        own = trigrams(sentences[i]) if block_trigrams else set()
        if own & seen:
            continue
        chosen.append(i)
        used += words[i]
        seen |= own
    return sorted(chosen) if chosen else order[:1]


def trigrams(sentence: str) -> set[tuple[str, ...]]:
    """Return every three words in a row, in lower case."""
    words = sentence.lower().split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}
