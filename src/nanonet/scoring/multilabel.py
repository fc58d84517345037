"""Scoring labels of which a text may have several, in a run or in a bundle, on labelled texts."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.data.checks import fingerprint
from nanonet.data.multilabel import MultilabelTable, flags_of
from nanonet.scoring.learners import ask_run, leaks
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.multilabel import (
    DEFAULT_THRESHOLD,
    Flags,
    exact_match,
    logits_of_units,
    macro_f1,
    micro_f1,
    sigmoid,
)
from nanonet.tasks.tokenization import encoding_warnings


@dataclass(frozen=True)
class MultilabelScores:
    """What an evaluation found.

    Attributes:
        accuracy: share of texts all of whose labels are right, of the shipped learner.
        micro_f1: over all texts and labels.
        macro_f1: mean over labels.
        by_label: F1 of each label that occurs in truth or answers, by its name.
        examples: texts scored.
        seconds: of the shipped learner's predictions, tokenization included.
        learners: ``accuracy`` of every learner at its thresholds; empty for a bundle.
        learners_micro_f1: the same of ``micro_f1``.
        warnings: what makes the figures doubtful.
    """

    accuracy: float
    micro_f1: float
    macro_f1: float
    by_label: dict[str, float]
    examples: int
    seconds: float
    learners: dict[str, float]
    learners_micro_f1: dict[str, float]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return what ``nanonet evaluate --json`` prints."""
        row: dict[str, Any] = {
            "accuracy": self.accuracy,
            "micro_f1": self.micro_f1,
            "macro_f1": self.macro_f1,
            "by_label": self.by_label,
            "examples": self.examples,
            "seconds": round(self.seconds, 3),
        }
        if self.learners:
            row |= {"learners": self.learners, "learners_micro_f1": self.learners_micro_f1}
        return row


def evaluate_bundle(
    path: Path, table: MultilabelTable, threads: int = 0, threshold: float | None = None
) -> MultilabelScores:
    """Score a bundle on a labelled table.

    Raises:
        BundleError, ConfigError: see `MultilabelPredictor.load`.
        DataError: a label that training never saw.
    """
    from nanonet.runtime.predictor import MultilabelPredictor

    predictor = MultilabelPredictor.load(path, threads=threads, threshold=threshold)
    truth = flags_of(table, predictor.labels)
    start = time.perf_counter()
    said = predictor.predict_proba(table.texts) >= predictor.thresholds
    seconds = time.perf_counter() - start
    encoded = predictor.encode(table.texts)
    warnings = encoding_warnings(table.source, encoded, predictor.manifest.max_length)
    warnings += leaks(table, {"labeled": predictor.seen})
    return _scores(truth, said, predictor.labels, seconds, {}, warnings)


def evaluate_run(
    path: Path, table: MultilabelTable, *, threshold: float | None = None
) -> MultilabelScores:
    """Score all learners of a run on a labelled table and note it in the run folder.

    The shipped learner has the run's thresholds, the others a half, unless ``threshold`` is given:
    then nothing is noted.

    Raises:
        RunError: not a finished run, or its folder cannot be written.
        BackboneError: its backbone is gone.
        DataError: a label that training never saw.
    """
    from nanonet.training.run_folder import RunFolder

    run = RunFolder(path)
    run.read_summary()  # not finished: said first
    labels = run.read_labels()
    truth = flags_of(table, labels)
    found = ask_run(path, table)
    said: dict[str, Flags] = {}
    for name, units in found.logits.items():
        limits: NDArray[Any] | float = DEFAULT_THRESHOLD if threshold is None else threshold
        if name == found.selected and threshold is None and run.thresholds is not None:
            limits = np.array(run.thresholds.values, dtype=np.float32)
        said[name] = sigmoid(logits_of_units(units, len(labels))) >= limits
    own, seconds = said[found.selected], found.seconds[found.selected]
    scores = _scores(truth, own, labels, seconds, said, found.warnings)
    if threshold is not None:  # a question of the moment, not a figure of the run
        return scores
    run.append_evaluation(
        {"source": table.source, "fingerprint": fingerprint(table), "selected": found.selected}
        | scores.to_json()
        | {"warnings": scores.warnings}
    )
    return scores


def _scores(
    truth: Flags,
    said: Flags,
    labels: LabelSet,
    seconds: float,
    learners: dict[str, Flags],
    warnings: list[str],
) -> MultilabelScores:
    if not truth.any():
        warnings = [*warnings, "no text has a label: F1 says nothing"]
    occurs: Flags = np.any(truth | said, axis=0)
    return MultilabelScores(
        accuracy=exact_match(truth, said),
        micro_f1=micro_f1(truth, said),
        macro_f1=macro_f1(truth, said),
        by_label={
            name: micro_f1(truth[:, k], said[:, k])
            for k, name in enumerate(labels.names)
            if occurs[k]
        },
        examples=len(truth),
        seconds=seconds,
        learners={name: exact_match(truth, own) for name, own in learners.items()},
        learners_micro_f1={name: micro_f1(truth, own) for name, own in learners.items()},
        warnings=warnings,
    )
