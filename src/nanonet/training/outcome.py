"""What is made of a trained cohort: which student to ship, and how sure it may be."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanonet.core.bundle import Calibration
from nanonet.models.cohort import TEACHER
from nanonet.tasks.base import EncodedTable
from nanonet.tasks.calibration import fit_temperature, smoothed, temperature_of_confidence
from nanonet.training.evaluation import predict_logits
from nanonet.training.prepare import Prepared
from nanonet.training.selection import Logits, Selection, select_by_agreement, select_by_score

SAMPLE_ROWS = 512  # unlabelled texts on which the cohort's agreement is measured
# A learner is wrong about as often as twice what it and its peers disagree: they learn from each
# other, so that they make half of their errors together. Measured in docs/probabilities.md.
ERRORS_PER_DISAGREEMENT = 2.0
LARGEST_CHANGE = 2.0  # factor of the temperature that may rest on such an estimate


@dataclass(frozen=True)
class Answers:
    """What all learners say of the same rows.

    Attributes:
        logits: by learner, (U, C).
        truth: class indexes (U,) of validation rows; None of others.
        rows: what they are, in words.
        examples: how many texts.
    """

    logits: Mapping[str, Logits]
    truth: NDArray[np.int64] | None
    rows: str
    examples: int


def ask(prepared: Prepared, seed: int) -> Answers:
    """Return what the cohort says of the validation rows or, without them, of a sample.

    The sample is of the unlabelled texts, or of the training texts where there are none.
    """
    if "validation" in prepared.tables:
        table = prepared.tables["validation"]
        logits = _logits(prepared, table, np.arange(table.examples))
        return Answers(logits, table.truth, f"{table.examples} validation rows", table.examples)
    kind = "unlabelled" if "unlabeled" in prepared.tables else "training"
    table = prepared.tables.get("unlabeled", prepared.tables["labeled"])
    rows = np.random.default_rng((seed, table.examples)).permutation(table.examples)[:SAMPLE_ROWS]
    return Answers(_logits(prepared, table, rows), None, f"{len(rows)} {kind} texts", len(rows))


def _logits(prepared: Prepared, table: EncodedTable, rows: NDArray[np.int64]) -> dict[str, Logits]:
    ids = [table.encoded.ids[i] for i in rows]
    cohort = prepared.cohort
    return {name: predict_logits(cohort[name], ids, prepared.hardware) for name in cohort}


def select(prepared: Prepared, answers: Answers) -> Selection:
    """Choose the learner to ship; see `selection`."""
    students = prepared.cohort.students
    if not students:
        return Selection(TEACHER, "the only learner", 0, {})
    if answers.truth is not None:
        table = prepared.tables["validation"]
        scores = {name: prepared.task.score(table, answers.logits[name]) for name in students}
        return select_by_score(answers.logits, scores, prepared.task.metric, answers.examples)
    if len(students) == 1:
        return Selection(students[0], "the only student", 0, {})
    return select_by_agreement(answers.logits, answers.rows)


def calibrate(prepared: Prepared, answers: Answers, selected: str) -> Calibration | None:
    """Return the temperature of the learner to ship; None for tasks without classes.

    With validation labels it is the one of least cross-entropy. Without them, the cohort's
    disagreement on unlabelled texts says how often the learner is wrong, and its mean confidence
    is brought there, within a factor of two.
    """
    if prepared.task.outputs.link != "softmax" or prepared.task.outputs.level != "document":
        return None
    logits = answers.logits[selected]
    if answers.truth is not None:
        temperature = fit_temperature(logits, smoothed(answers.truth, logits.shape[1]))
        return Calibration(temperature, f"labels of {answers.rows}", answers.examples)
    peers = [z.argmax(-1) for name, z in answers.logits.items() if name != selected]
    if not peers or "unlabeled" not in prepared.tables:
        return Calibration(1.0, "none: no unlabelled texts on which learners could disagree", 0)
    accuracy = accuracy_of(logits.argmax(-1), peers, logits.shape[1])
    temperature = temperature_of_confidence(logits, accuracy)
    temperature = float(np.clip(temperature, 1 / LARGEST_CHANGE, LARGEST_CHANGE))
    return Calibration(temperature, f"disagreement of the cohort on {answers.rows}", 0)


def accuracy_of(answers: NDArray[np.int64], peers: list[NDArray[np.int64]], classes: int) -> float:
    """Return an estimate of how often a learner's answers (n,) are right, from its peers' (n,)."""
    disagreement = float(np.mean([(answers != other).mean() for other in peers]))
    most = 1.0 - 1.0 / (len(answers) + 2)  # never surer than the rows can tell
    return float(np.clip(1.0 - ERRORS_PER_DISAGREEMENT * disagreement, 1.0 / classes, most))
