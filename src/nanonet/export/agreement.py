"""What a smaller model costs: how many texts it answers as the original does, and its accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import Config
from nanonet.core.errors import BundleError, DataError
from nanonet.data.checks import fingerprint
from nanonet.data.readers import LabelUse, TextTable, read_table
from nanonet.export.graph import open_session
from nanonet.export.vocabulary import kept_tokens, trim_tokenizer
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.tokenization import Ids, TextTokenizer, length_chunks, pad
from nanonet.training.inputs import columns_of
from nanonet.training.run_folder import RunFolder

TEXTS = 1000  # measured on, at most
AGREEMENT = 0.99  # share of texts that a smaller model should answer as the original does
TOKENS_PER_CHUNK, MAX_PADDING = 2048, 0.1
# Vocabularies that are tried: each a quarter larger than the one before.
SIZES = tuple(round(500 * 1.25**k) for k in range(28))


@dataclass(frozen=True)
class Sample:
    """Texts to measure on.

    Attributes:
        source: where they are from, for messages.
        texts: (n,).
        truth: class indexes (n,); None where there are no labels.
        seen: whether training has read them: their tokens are among the run's token counts.
    """

    source: str
    texts: list[str]
    truth: NDArray[np.int64] | None
    seen: bool

    def describe(self) -> str:
        """Return it as part of a sentence."""
        return f"{len(self.texts)} texts of {self.source}"


@dataclass(frozen=True)
class Step:
    """The model after one step on its way to a bundle.

    Attributes:
        name: of the step.
        bytes: of model and tokenizer.
        agreement: share of the sample's texts that are answered as the first model answers them;
            None where there is no sample.
        accuracy: on the sample; None without labels.
    """

    name: str
    bytes: int
    agreement: float | None
    accuracy: float | None


def draw_sample(table: TextTable, labels: LabelSet, seen: bool) -> Sample:
    """Return at most `TEXTS` of a table's texts, the same ones each time.

    Raises:
        DataError: a label that training never saw.
    """
    rows = np.sort(np.random.default_rng(len(table.texts)).permutation(len(table.texts))[:TEXTS])
    truth = None
    if table.labels is not None and not seen:  # accuracy on training texts says nothing
        truth = labels.encode(table.labels, table.source, table.rows, table.names)[rows]
    return Sample(table.source, [table.texts[i] for i in rows], truth, seen)


def run_sample(config: Config, inputs: dict[str, Any], labels: LabelSet) -> Sample | None:
    """Return texts that a run was trained with, if their file still is what it was.

    The unlabelled ones where there are any. None: they were given as lists, or have changed.
    """
    reading: tuple[tuple[str, LabelUse], ...] = (("unlabeled", "ignored"), ("labeled", "required"))
    for name, use in reading:
        known = inputs.get(name, {})
        try:
            table = read_table(str(known.get("source", "")), columns_of(config.data), labels=use)
        except DataError:
            continue
        if fingerprint(table) == known.get("fingerprint"):
            return draw_sample(table, labels, seen=True)
    return None


def logits_of(session: Any, ids: Sequence[Ids]) -> NDArray[np.float32]:
    """Return logits (n, C) of n rows of token ids."""
    out: dict[int, NDArray[np.float32]] = {}
    for feed, rows in batches(ids):
        out |= dict(zip(rows.tolist(), session.run(["logits"], feed)[0], strict=True))
    return np.stack([out[i] for i in range(len(ids))])


def batches(ids: Sequence[Ids]) -> list[tuple[dict[str, Ids], Ids]]:
    """Return inputs of the model and the rows that each holds."""
    chunks = length_chunks([len(row) for row in ids], MAX_PADDING, TOKENS_PER_CHUNK)
    names = ("input_ids", "attention_mask")
    return [(dict(zip(names, pad([ids[i] for i in c]), strict=True)), c) for c in chunks]


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
            self._ids = self.encode(tokenizer)
            self._answers = logits_of(self._session, self._ids).argmax(-1)

    def encode(self, tokenizer: str) -> list[Ids]:
        """Return the token ids of the sample's texts."""
        texts = [] if self.sample is None else self.sample.texts
        return TextTokenizer(tokenizer, self._max_length).encode(texts).ids

    def step(self, name: str, model: Path, tokenizer: str) -> Step:
        """Measure a model and note it."""
        agreement = accuracy = None
        if self.sample is not None:
            answers = logits_of(open_session(model), self.encode(tokenizer)).argmax(-1)
            agreement = float((answers == self._answers).mean())
            if self.sample.truth is not None:
                accuracy = float((answers == self.sample.truth).mean())
        size = model.stat().st_size + len(tokenizer.encode())
        self.steps.append(Step(name, size, agreement, accuracy))
        return self.steps[-1]

    def counts_elsewhere(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return token counts (V,) of a run's texts without those of the sample."""
        if self.sample is None or not self.sample.seen:
            return counts
        return counts - np.bincount(np.concatenate(self._ids), minlength=len(counts))

    def smallest_vocabulary(self, counts: NDArray[np.int64], wanted: float) -> int:
        """Return the least of `SIZES` whose tokens answer enough texts as before.

        A text whose tokens all are kept needs no second look. Texts that training has read are
        not counted when the tokens are chosen that they are measured with: they stand for texts
        that are yet to come.

        Args:
            counts: how often each token occurs in the run's texts, (V,).
            wanted: share of texts.
        """
        others = self.counts_elsewhere(counts)
        best = len(counts)
        for n in sorted((s for s in SIZES if s < len(counts)), reverse=True):
            kept = kept_tokens(self._tokenizer, others, n)
            ids = [kept[row] for row in self.encode(trim_tokenizer(self._tokenizer, kept))]
            changed = [i for i, row in enumerate(ids) if not np.array_equal(row, self._ids[i])]
            answers = self._answers.copy()
            if changed:
                answers[changed] = logits_of(self._session, [ids[i] for i in changed]).argmax(-1)
            if (answers == self._answers).mean() < wanted:
                break
            best = n
        return best


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
