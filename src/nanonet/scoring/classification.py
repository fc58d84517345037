"""Scoring a classifier, in a run or in a bundle, on labelled texts."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.bundle import Priors
from nanonet.core.errors import DataError
from nanonet.data.checks import fingerprint
from nanonet.data.readers import TextTable
from nanonet.scoring.learners import ask_run, leaks
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.metrics import (
    accuracy,
    confusion,
    expected_calibration_error,
    macro_f1,
    softmax,
)
from nanonet.tasks.tokenization import encoding_warnings


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        accuracy: of the shipped learner, 0 to 1.
        macro_f1: of the shipped learner, 0 to 1.
        ece: expected calibration error of its probabilities (15 bins).
        ece_uncalibrated: the same before its logits were divided by the temperature and fitted to
            the shares of the classes.
        coverage: share of rows that get a label: see ``min_confidence``.
        accuracy_covered: of the rows that get a label; None where there are none.
        min_confidence: a row whose most probable class has less gets no label.
        examples: rows scored.
        seconds: of the shipped learner's predictions, tokenization included.
        learners: accuracy of every learner; empty for a bundle.
        warnings: what makes the figures doubtful.
    """

    accuracy: float
    macro_f1: float
    ece: float
    ece_uncalibrated: float
    coverage: float
    accuracy_covered: float | None
    min_confidence: float
    examples: int
    seconds: float
    learners: dict[str, float]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return what ``nanonet evaluate --json`` prints."""
        row: dict[str, Any] = {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "ece": self.ece,
            "ece_uncalibrated": self.ece_uncalibrated,
            "coverage": self.coverage,
            "accuracy_covered": self.accuracy_covered,
            "min_confidence": self.min_confidence,
            "examples": self.examples,
            "seconds": round(self.seconds, 3),
        }
        return row | ({"learners": self.learners} if self.learners else {})


@dataclass(frozen=True)
class Predictions:
    """What the learners of a run say of a labelled table of n texts.

    Attributes:
        truth: class indexes, (n,).
        logits: (n, C), by learner.
        seconds: by learner, tokenization included.
        selected: the shipped learner.
        warnings: what makes figures on this table doubtful.
    """

    truth: NDArray[np.int64]
    logits: dict[str, NDArray[np.float32]]
    seconds: dict[str, float]
    selected: str
    warnings: list[str]


def evaluate_bundle(
    path: Path, table: TextTable, threads: int = 0, min_confidence: float | None = None
) -> Scores:
    """Score a bundle on a labelled table.

    Args:
        path: the bundle.
        table: texts and labels.
        threads: see `Predictor.load`.
        min_confidence: see `Predictor.load`.

    Raises:
        BundleError: see `Predictor.load`.
        DataError: a label that training never saw.
    """
    from nanonet.runtime.predictor import Predictor

    predictor = Predictor.load(path, threads=threads, min_confidence=min_confidence)
    truth = _truth(table, predictor.labels)
    start = time.perf_counter()
    logits = predictor.predict_logits(table.texts)
    seconds = time.perf_counter() - start
    encoded = predictor.encode(table.texts)
    warnings = encoding_warnings(table.source, encoded, predictor.manifest.max_length)
    warnings += leaks(table, {"labeled": predictor.seen})
    calibration = predictor.manifest.calibration
    temperature = 1.0 if calibration is None else calibration.temperature
    raw = _as_learnt(logits, temperature, predictor.manifest.priors)
    return _scores(truth, logits, raw, predictor.min_confidence, seconds, {}, warnings)


def evaluate_run(
    path: Path, table: TextTable, *, as_trained: bool = False, min_confidence: float = 0.0
) -> Scores:
    """Score all learners of a run on a labelled table and note it in the run folder.

    See `predict_run` for arguments and errors.
    """
    found = predict_run(path, table, as_trained=as_trained)
    return note_scores(path, table, found, min_confidence)


def predict_run(path: Path, table: TextTable, *, as_trained: bool = False) -> Predictions:
    """Ask all learners of a run for the classes of a labelled table.

    See `ask_run` for arguments and errors; DataError: a label that training never saw.
    """
    from nanonet.training.run_folder import RunFolder

    truth = _truth(table, RunFolder(path).read_labels())
    found = ask_run(path, table, as_trained=as_trained)
    return Predictions(truth, found.logits, found.seconds, found.selected, found.warnings)


def note_scores(
    path: Path, table: TextTable, found: Predictions, min_confidence: float = 0.0
) -> Scores:
    """Score what the learners said of a table and note it in the run folder, mistakes counted.

    Args:
        path: the run folder.
        table: what they were asked about.
        found: what they said.
        min_confidence: a text whose most probable class has less counts as not covered.

    Raises:
        RunError: the run folder cannot be written.
    """
    from nanonet.training.run_folder import RunFolder

    best = {name: logits.argmax(-1) for name, logits in found.logits.items()}
    learners = {name: accuracy(found.truth, predicted) for name, predicted in best.items()}
    run, own = RunFolder(path), found.logits[found.selected]
    raw = _as_learnt(own, run.temperature, run.priors)
    scores = _scores(
        *(found.truth, own, raw, min_confidence),
        *(found.seconds[found.selected], learners, found.warnings),
    )
    classes = own.shape[1]
    tables = {
        n: confusion(found.truth, predicted, classes).tolist() for n, predicted in best.items()
    }
    run.append_evaluation(
        {"source": table.source, "fingerprint": fingerprint(table), "selected": found.selected}
        | scores.to_json()
        | {"warnings": scores.warnings, "confusion": tables}
    )
    return scores


def _truth(table: TextTable, labels: LabelSet) -> NDArray[np.int64]:
    if table.labels is None:
        raise DataError(f"{table.source} has no labels to compare with")
    return labels.encode(table.labels, table.source, table.rows, table.names)


def _as_learnt(
    logits: NDArray[np.float32], temperature: float, priors: Priors | None
) -> NDArray[np.float32]:
    """Return logits (n, C) as they were before they were fitted to anything."""
    if priors is not None:
        logits = logits - np.array(priors.offsets, dtype=np.float32)
    return logits * np.float32(temperature)


def _scores(
    truth: NDArray[np.int64],
    logits: NDArray[np.float32],
    raw: NDArray[np.float32],
    min_confidence: float,
    seconds: float,
    learners: dict[str, float],
    warnings: list[str],
) -> Scores:
    """Return the scores of logits (n, C), which were ``raw`` before calibration."""
    probabilities = softmax(logits)
    predicted = probabilities.argmax(-1)
    sure = probabilities.max(-1) >= min_confidence
    return Scores(
        accuracy=accuracy(truth, predicted),
        macro_f1=macro_f1(truth, predicted),
        ece=expected_calibration_error(truth, probabilities),
        ece_uncalibrated=expected_calibration_error(truth, softmax(raw)),
        coverage=float(sure.mean()),
        accuracy_covered=accuracy(truth[sure], predicted[sure]) if sure.any() else None,
        min_confidence=min_confidence,
        examples=len(truth),
        seconds=seconds,
        learners=learners,
        warnings=warnings,
    )
