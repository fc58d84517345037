"""Long texts in an encoder's space: the mean of what their sentences are.

One vector of a whole review says what it is about. Whether its writer was pleased, single sentences
say, and the mean of their vectors does. Short texts are one vector: there, sentences were no better
or worse (figures in ``docs/experiments.md``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nanonet.models.learner import Learner
from nanonet.tasks.base import Row, row_lengths
from nanonet.tasks.tokenization import Ids, special_ids
from nanonet.training.device import Hardware
from nanonet.training.evaluation import embed
from nanonet.training.processes import ALONE, Processes

LONG = 128  # tokens of the median text: what sentence encoders such as MiniLM are trained up to
FEWEST = 4  # tokens of a sentence; shorter ones join the next
SENTENCE_ENDS = frozenset(".!?。！？।؟…")
CLOSING = "\"'”’»)]"


@dataclass(frozen=True)
class Sentences:
    """How rows of token ids fall into sentences.

    Attributes:
        before: special tokens that stand before a text, (b,).
        after: those that stand after it, (a,).
        ends: tokens that end a sentence, (e,).
    """

    before: Ids
    after: Ids
    ends: Ids

    def of(self, row: Ids) -> list[Ids]:
        """Return a text's sentences in order, special tokens around each; at least one."""
        body = row[len(self.before) : len(row) - len(self.after)]
        stops = np.flatnonzero(np.isin(body, self.ends)) + 1
        cuts, start = [], 0
        for stop in map(int, stops):
            if stop - start >= FEWEST:
                cuts.append(stop)
                start = stop
        if len(body) - start < FEWEST:
            cuts = cuts[:-1]  # what is left belongs to the last sentence
        return [np.concatenate([self.before, part, self.after]) for part in np.split(body, cuts)]


def sentences_of(tokenizer_json: str) -> Sentences:
    """Return how a tokenizer's rows fall into sentences."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab()
    # Decoded, since byte-level vocabularies write most signs as others.
    ends = [i for i in vocabulary.values() if is_end(tokenizer.decode([i]))]
    return Sentences(*special_ids(tokenizer), np.array(sorted(ends), dtype=np.int64))


def is_end(token: str) -> bool:
    """Return whether a decoded token ends a sentence, quotes and brackets after it included."""
    bare = token.strip().removeprefix("##").rstrip(CLOSING)
    return bool(bare) and set(bare) <= SENTENCE_ENDS


def are_long(rows: Sequence[Row]) -> bool:
    """Return whether the median text is so long that sentences place it better."""
    return len(rows) > 0 and float(np.median(row_lengths(rows))) > LONG


def place(
    learner: Learner,
    rows: Sequence[Row],
    hardware: Hardware,
    sentences: Sentences | None = None,
    processes: Processes = ALONE,
) -> NDArray[np.float32]:
    """Return the texts' vectors (n, H), L2-normalised: means over sentences, or those of `embed`.

    Args:
        learner: in whose space.
        rows: token ids of n texts.
        hardware: where to compute.
        sentences: how texts fall into sentences; None: they are read whole.
        processes: who shares the rows.
    """
    if sentences is None:
        return embed(learner, rows, hardware, processes=processes)
    parts = [sentences.of(np.asarray(row)) for row in rows]
    counts = [len(part) for part in parts]
    vectors = embed(learner, [s for part in parts for s in part], hardware, processes=processes)
    sums = np.add.reduceat(vectors, np.cumsum([0, *counts[:-1]]))
    placed: NDArray[np.float32] = sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-12)
    return placed
