"""The batch of a step, as a pure function of the seed and the step.

Nothing here has a state: step 137 of a resumed run draws the same rows as step 137 of a run that
was never stopped. Rows are drawn without regard to length, and each batch is then cut into chunks
of like length (`length_chunks`), so that chance stays chance and little is padded.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanonet.tasks.tokenization import Ids

LABELED, UNLABELED = 0, 1  # the streams' places in the seed


@dataclass(frozen=True)
class RowStream:
    """An endless shuffle of n rows: every row once per pass, in another order each pass."""

    n: int
    seed: int
    stream: int

    def rows(self, start: int, count: int) -> Ids:
        """Return the row indexes at positions start .. start + count of the endless sequence."""
        positions = np.arange(start, start + count)
        out = np.empty(count, dtype=np.int64)
        for pass_number in np.unique(positions // self.n):
            here = positions // self.n == pass_number
            order = _order(self.n, self.seed, self.stream, int(pass_number))
            out[here] = order[positions[here] % self.n]
        return out


@functools.lru_cache(maxsize=4)  # the current pass of each stream, and the one it runs into
def _order(n: int, seed: int, stream: int, pass_number: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, stream, pass_number)).permutation(n)


@dataclass(frozen=True)
class StepBatches:
    """Draws the rows of each step from the labelled and the unlabelled texts.

    Args:
        labeled_lengths: tokens per labelled text, (n_l,).
        unlabeled_lengths: tokens per unlabelled text, (n_u,); empty without unlabelled text.
        labeled_batch: labelled rows per step.
        unlabeled_batch: unlabelled rows per step at most.
        token_budget: unlabelled tokens per step at most; at least one row is drawn.
        seed: of the run.
    """

    labeled_lengths: Ids
    unlabeled_lengths: Ids
    labeled_batch: int
    unlabeled_batch: int
    token_budget: int
    seed: int

    def draw(self, step: int) -> tuple[Ids, Ids]:
        """Return the rows of ``step`` (from 0): labelled (<= labeled_batch,), unlabelled (m,).

        A step whose unlabelled rows exceed the token budget keeps the first that fit; the others
        come up again in later passes.
        """
        labeled = RowStream(len(self.labeled_lengths), self.seed, LABELED)
        size = min(self.labeled_batch, len(self.labeled_lengths))
        rows = labeled.rows(step * size, size)
        if len(self.unlabeled_lengths) == 0:
            return rows, np.empty(0, dtype=np.int64)
        unlabeled = RowStream(len(self.unlabeled_lengths), self.seed, UNLABELED)
        size = min(self.unlabeled_batch, len(self.unlabeled_lengths))
        drawn = unlabeled.rows(step * size, size)
        fits = np.cumsum(self.unlabeled_lengths[drawn]) <= self.token_budget
        fits[0] = True
        return rows, drawn[fits]
