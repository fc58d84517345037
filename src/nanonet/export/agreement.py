"""What a smaller model costs: how far it answers as the original does, and how well."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanonet.core.errors import BundleError
from nanonet.export.graph import open_session
from nanonet.export.samples import Sample
from nanonet.export.vocabulary import kept_tokens, trim_tokenizer
from nanonet.tasks.base import Row, Window
from nanonet.tasks.tokenization import Ids
from nanonet.training.run_folder import RunFolder

# Vocabularies that are tried: each a quarter larger than the one before.
SIZES = tuple(round(500 * 1.25**k) for k in range(28))


@dataclass(frozen=True)
class Step:
    """The model after one step on its way to a bundle.

    Attributes:
        name: of the step.
        bytes: of model and tokenizer.
        agreement: with the first model's answers, see `Sample.agreement`; None where there is no
            sample.
        accuracy: on the sample; None without labels.
        rouge: on the sample, by metric; None without references.
    """

    name: str
    bytes: int
    agreement: float | None
    accuracy: float | None
    rouge: dict[str, float] | None = None


class Measure:
    """Compares models with the first one on a sample.

    Args:
        model: the first model's file.
        tokenizer: its ``tokenizer.json`` content.
        max_length: tokens of one text at most.
        sample: what to measure on; None: only sizes are reported.
    """

    def __init__(self, model: Path, tokenizer: str, max_length: int, sample: Sample | None) -> None:
        self.sample = sample
        self.steps: list[Step] = []
        self._max_length = max_length
        self._tokenizer = tokenizer
        if sample is not None:
            self._session = open_session(model)
            self._rows = self.encode(tokenizer)
            self._answers = sample.answers(self._session, self._rows, range(len(self._rows)))

    def encode(self, tokenizer: str) -> list[list[Row]]:
        """Return the rows of each of the sample's texts."""
        return [] if self.sample is None else self.sample.rows(tokenizer, self._max_length)

    def step(self, name: str, model: Path, tokenizer: str) -> Step:
        """Measure a model and note it."""
        agreement, scores = None, dict[str, float]()
        if self.sample is not None:
            rows = self.encode(tokenizer)
            answers = self.sample.answers(open_session(model), rows, range(len(rows)))
            agreement = self.sample.agreement(answers, self._answers)
            scores = self.sample.scores(answers)
        size = model.stat().st_size + len(tokenizer.encode())
        rouge = {key: value for key, value in scores.items() if key != "accuracy"} or None
        self.steps.append(Step(name, size, agreement, scores.get("accuracy"), rouge))
        return self.steps[-1]

    def counts_elsewhere(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return token counts (V,) of a run's texts without those of the sample."""
        if self.sample is None or not self.sample.seen:
            return counts
        own = [ids_of(row) for rows in self._rows for row in rows]
        return counts - np.bincount(np.concatenate(own), minlength=len(counts))

    def smallest_vocabulary(self, counts: NDArray[np.int64], wanted: float) -> int:
        """Return the least of `SIZES` whose tokens answer enough texts as before.

        A text whose tokens all are kept needs no second look. Texts that training has read are
        not counted when the tokens are chosen that they are measured with: they stand for texts
        that are yet to come.

        Args:
            counts: how often each token occurs in the run's texts, (V,).
            wanted: share of texts.
        """
        assert self.sample is not None
        others = self.counts_elsewhere(counts)
        best = len(counts)
        for n in sorted((s for s in SIZES if s < len(counts)), reverse=True):
            kept = kept_tokens(self._tokenizer, others, n)
            small = self.encode(trim_tokenizer(self._tokenizer, kept))
            rows = [[renumbered(row, kept) for row in own] for own in small]
            changed = [i for i, own in enumerate(rows) if not are_equal(own, self._rows[i])]
            answers = list(self._answers)
            for i, answer in zip(
                changed, self.sample.answers(self._session, rows, changed), strict=True
            ):
                answers[i] = answer
            if self.sample.agreement(answers, self._answers) < wanted:
                break
            best = n
        return best


def ids_of(row: Row) -> Ids:
    """Return a row's token ids."""
    return row.ids if isinstance(row, Window) else row


def renumbered(row: Row, kept: Ids) -> Row:
    """Return a row of a trimmed vocabulary with the ids of the whole one."""
    return replace(row, ids=kept[row.ids]) if isinstance(row, Window) else kept[row]


def are_equal(rows: list[Row], others: list[Row]) -> bool:
    """Return whether a text's rows hold the same tokens."""
    if len(rows) != len(others):
        return False
    return all(np.array_equal(ids_of(a), ids_of(b)) for a, b in zip(rows, others, strict=True))


def read_counts(run: RunFolder) -> NDArray[np.int64]:
    """Return how often each token occurs in a run's texts, (V,).

    Raises:
        BundleError: the run was made before counts were kept.
    """
    if not run.token_counts.is_file():
        raise BundleError(
            f"run {run.path} holds no token counts, as it was trained by an older version: train"
            " again, or export without --trim-vocabulary"
        )
    return np.fromfile(run.token_counts, dtype="<u4").astype(np.int64)
