"""Texts to label next: those that a run or a bundle would learn most from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nanonet.core.errors import ConfigError, DataError
from nanonet.core.machine import usable_cores
from nanonet.data.checks import hashes_of
from nanonet.data.readers import TextTable
from nanonet.tasks.informative import most_informative
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.metrics import softmax

if TYPE_CHECKING:
    from nanonet.runtime.predictor import Predictor


@dataclass(frozen=True)
class Suggestion:
    """A text to label, and what is thought of it so far.

    Attributes:
        row: its line or row in the file, as other messages count them; from 1 in a list.
        text: the text.
        guess: index of the most probable class.
        probability: of that class, 0 to 1; of a run, the mean over its learners.
    """

    row: int
    text: str
    guess: int
    probability: float


@dataclass(frozen=True)
class Suggestions:
    """What to label next.

    Attributes:
        rows: in the order of their choice: the first k of them are what k alone would give.
        labels: the classes.
        labeled: texts left out, for training had their labels.
        copies: texts left out as copies of others.
    """

    rows: list[Suggestion]
    labels: LabelSet
    labeled: int
    copies: int


def suggest_by_bundle(path: Path, table: TextTable, count: int, seed: int = 0) -> Suggestions:
    """Return texts of a table that a bundle is in doubt about, each for another reason.

    Args:
        path: the bundle.
        table: texts; labels are not looked at.
        count: how many.
        seed: of the draws.

    Raises:
        ConfigError: ``count`` is below 1.
        BundleError: see `Predictor.load`.
        DataError: every text is labelled already.
    """
    from nanonet.runtime.predictor import Predictor

    return suggest_by(Predictor.load(path), table, count, seed)


def suggest_by(predictor: "Predictor", table: TextTable, count: int, seed: int = 0) -> Suggestions:
    """Return what `suggest_by_bundle` does, of a bundle that is loaded."""
    candidates = _Candidates(table, count, predictor.seen)
    probabilities = softmax(predictor.predict_logits(candidates.texts).astype(np.float64))
    return candidates.choose(probabilities, None, predictor.labels, seed)


def suggest_by_run(path: Path, table: TextTable, count: int, seed: int = 0) -> Suggestions:
    """Return texts of a table that the cohort of a run is in doubt about, each unlike the others.

    Doubt is in the mean of all sound learners' probabilities, so that it counts where they
    disagree; likeness is the cosine of the shipped learner's vectors.

    Args:
        path: the run folder.
        table: texts; labels are not looked at.
        count: how many.
        seed: of the draws.

    Raises:
        ConfigError: ``count`` is below 1.
        RunError: not a finished run.
        BackboneError: its backbone is gone.
        DataError: every text is labelled already.
    """
    from nanonet.export import load_cohort
    from nanonet.tasks.tokenization import TextTokenizer
    from nanonet.training.device import Hardware
    from nanonet.training.evaluation import embed, predict_logits
    from nanonet.training.run_folder import RunFolder

    run = RunFolder(path)
    summary = run.read_summary()
    selected, astray = str(summary["selected"]), (summary.get("guard") or {}).get("astray", [])
    candidates = _Candidates(table, count, run.read_seen("labeled"))
    config, _ = run.read_config()
    cohort, hardware = load_cohort(run), Hardware("cpu", "fp32", "eager", usable_cores())
    ids = TextTokenizer(run.read_tokenizer(), config.data.max_length).encode(candidates.texts).ids
    asked = [name for name in cohort if name not in astray]
    said = [predict_logits(cohort[name], ids, hardware).astype(np.float64) for name in asked]
    vectors = embed(cohort[selected], ids, hardware)
    mean = np.mean([softmax(logits) for logits in said], axis=0)
    return candidates.choose(mean, vectors, run.read_labels(), seed)


class _Candidates:
    """The texts of a table that may be suggested: one of each, and none that has a label."""

    def __init__(self, table: TextTable, count: int, known: NDArray[np.uint64]) -> None:
        if count < 1:
            raise ConfigError(f"{count} texts to label are wanted, but at least 1 must be")
        hashes = hashes_of(table.texts)
        first = np.zeros(len(hashes), dtype=bool)
        first[np.unique(hashes, return_index=True)[1]] = True
        is_known = np.isin(hashes, known)
        self.table, self.count = table, count
        self.labeled = int(is_known.sum())
        self.copies = int((~first & ~is_known).sum())
        self.indexes = np.flatnonzero(first & ~is_known)
        self.texts = [table.texts[i] for i in self.indexes]
        if not self.texts:
            raise DataError(f"{table.source}: training had the labels of all its texts")

    def choose(
        self,
        probabilities: NDArray[np.floating],
        vectors: NDArray[np.floating] | None,
        labels: LabelSet,
        seed: int,
    ) -> Suggestions:
        """Return suggestions, given probabilities (n, C) and vectors (n, H) of the candidates."""
        rows = [
            Suggestion(
                row=int(self.table.rows[self.indexes[i]]),
                text=self.texts[i],
                guess=int(probabilities[i].argmax()),
                probability=float(probabilities[i].max()),
            )
            for i in most_informative(probabilities, vectors, self.count, seed)
        ]
        return Suggestions(rows, labels, self.labeled, self.copies)
