"""What is made of a trained cohort: which student to ship, and how sure it may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nanonet.core.bundle import Calibration, Priors, Thresholds
from nanonet.core.config import Config
from nanonet.models.cohort import TEACHER
from nanonet.tasks.base import Row, unit_counts
from nanonet.tasks.calibration import fit_temperature, smoothed, temperature_of_confidence
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.metrics import softmax
from nanonet.tasks.multilabel import (
    best_thresholds,
    expected_thresholds,
    logits_of_units,
    sigmoid,
)
from nanonet.tasks.stored import random_rows
from nanonet.training.co_training import CO_TRAINED
from nanonet.training.display import Display
from nanonet.training.evaluation import predict_logits
from nanonet.training.heads import FittedHead, fit_heads
from nanonet.training.prepare import Prepared
from nanonet.training.priors import AUTO, estimated_priors, given_priors
from nanonet.training.selection import Logits, Selection, select_by_agreement, select_by_score

SAMPLE_UNITS = 512  # unlabelled texts, or sentences, on which the cohort's agreement is measured
# A learner is wrong at least about as often as it and its peers disagree, and at most about twice
# as often, since they make errors together. Measured in docs/probabilities.md.
FEWEST_ERRORS, MOST_ERRORS = 1.0, 2.0  # per disagreement
LARGEST_CHANGE = 2.0  # factor of the temperature that may rest on such an estimate


@dataclass(frozen=True)
class Outcome:
    """Which learner ships, and what its logits are fitted to; None: nothing."""

    selection: Selection
    calibration: Calibration | None
    priors: Priors | None
    thresholds: Thresholds | None = None
    astray: tuple[str, ...] = ()  # learners that are not sound: they have no say
    heads: Mapping[str, FittedHead] = field(default_factory=dict)  # by student, see `heads`


def conclude(prepared: Prepared, config: Config, labels: LabelSet, display: Display) -> Outcome:
    """Return what is made of a trained cohort."""
    astray = find_astray(prepared)
    heads = fit_heads(prepared, config.training.head_texts, config.seed, astray, display)
    answers = ask(prepared, config.seed, astray)
    selection = select(prepared, answers)
    calibration = calibrate(prepared, answers, selection.selected)
    temperature = 1.0 if calibration is None else calibration.temperature
    priors = find_priors(prepared, config, labels, answers, selection.selected, temperature)
    thresholds = find_thresholds(prepared, answers, selection.selected, temperature)
    return Outcome(selection, calibration, priors, thresholds, astray, heads)


def find_astray(prepared: Prepared) -> tuple[str, ...]:
    """Return the learners that the guard finds not sound; none where that leaves nobody to ship.

    With validation rows nobody: their labels know better.
    """
    guard = prepared.engine.guard
    if guard is None or "validation" in prepared.tables:
        return ()
    astray = guard.astray(prepared.cohort)
    return tuple(astray) if len(astray) < len(prepared.cohort.learners) else ()


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


def ask(prepared: Prepared, seed: int, astray: Sequence[str] = ()) -> Answers:
    """Return what the cohort says of the validation rows or, without them, of a sample.

    Those who are ``astray`` are not asked.

    The sample is of the unlabelled texts, of those that are kept aside where there are some, or of
    the training texts where there are none.
    """
    if "validation" in prepared.tables:
        table = prepared.tables["validation"]
        logits = logits_by_learner(prepared, table.encoded.ids, astray)
        return Answers(logits, table.truth, f"{table.examples} validation rows", table.examples)
    sample, what = sample_rows(prepared, seed)
    return Answers(logits_by_learner(prepared, sample, astray), None, what, len(sample))


def sample_rows(prepared: Prepared, seed: int) -> tuple[Sequence[Row], str]:
    """Return some unlabelled rows, or training rows where there are none; and what they are."""
    kind = "unlabelled" if "unlabeled" in prepared.tables else "training"
    table = prepared.tables.get("unlabeled", prepared.tables["labeled"])
    ids = table.encoded.ids
    if prepared.aside:
        _, reached = prepared.engine.within_reach()
        ids = [prepared.aside[i] for i in reached] or prepared.aside
    sample = [ids[i] for i in random_rows(len(ids), SAMPLE_UNITS, seed)]
    held = np.cumsum(unit_counts(sample))
    sample = sample[: int(np.searchsorted(held, SAMPLE_UNITS)) + 1]
    what = "texts" if prepared.task.outputs.level == "document" else "windows of documents"
    return sample, f"{len(sample)} {kind} {what}{' kept aside' if prepared.aside else ''}"


def logits_by_learner(
    prepared: Prepared, rows: Sequence[Row], but: Sequence[str] = ()
) -> dict[str, Logits]:
    """Return every learner's logits (U, C) of the units of n rows; processes share the work."""
    cohort, processes = prepared.cohort, prepared.engine.processes
    return {
        name: predict_logits(cohort[name], rows, prepared.hardware, processes=processes)
        for name in cohort
        if name not in but
    }


def select(prepared: Prepared, answers: Answers) -> Selection:
    """Choose the learner to ship, of those that were asked; see `selection`.

    The teacher, where no student was.
    """
    students = [name for name in prepared.cohort.students if name in answers.logits]
    if not students:
        alone = "the only sound learner" if prepared.cohort.students else "the only learner"
        return Selection(TEACHER, alone, 0, {})
    if answers.truth is not None:
        table = prepared.tables["validation"]
        scores = {name: prepared.task.score(table, answers.logits[name]) for name in students}
        return select_by_score(answers.logits, scores, prepared.task.metric, answers.examples)
    if prepared.start.settled:
        return Selection(students[0], "all students are the same", 0, {})
    if len(students) == 1:
        sound = "" if len(prepared.cohort.students) == 1 else "sound "
        return Selection(students[0], f"the only {sound}student", 0, {})
    return select_by_agreement(answers.logits, answers.rows)


def calibrate(prepared: Prepared, answers: Answers, selected: str) -> Calibration | None:
    """Return the temperature of the learner to ship; None for tasks on sentences.

    With validation labels it is the one of least cross-entropy. Without them, the cohort's
    disagreement on unlabelled texts says between which bounds the accuracy lies. A mean confidence
    beyond them is brought to the nearer one; one between them stays, so that little is spoilt. How
    such bounds hold where texts have many labels was not measured: nothing is fitted there.
    """
    if prepared.task.outputs.level != "document":
        return None
    logits = answers.logits[selected]
    if answers.truth is not None:
        temperature = fit_temperature(logits, smoothed(answers.truth, logits.shape[1]))
        return Calibration(temperature, f"labels of {answers.rows}", answers.examples)
    if prepared.task.outputs.is_multilabel:
        return None
    peers = [z.argmax(-1) for name, z in answers.logits.items() if name != selected]
    if not peers or "unlabeled" not in prepared.tables:
        return Calibration(1.0, "none: no learners that could disagree on unlabelled texts", 0)
    low, high = accuracy_bounds(logits.argmax(-1), peers, logits.shape[1])
    confidence = float(softmax(logits).max(-1).mean())
    wanted = float(np.clip(confidence, low, high))
    temperature = 1.0 if wanted == confidence else temperature_of_confidence(logits, wanted)
    temperature = float(np.clip(temperature, 1 / LARGEST_CHANGE, LARGEST_CHANGE))
    return Calibration(temperature, f"disagreement of the cohort on {answers.rows}", 0)


def find_thresholds(
    prepared: Prepared, answers: Answers, selected: str, temperature: float
) -> Thresholds | None:
    """Return from which probability on a text gets each label, where it may have several.

    Of the best F1 on validation texts or, without them, of the best F1 that is to be expected on
    unlabelled texts; with neither: None, a half.
    """
    if not prepared.task.outputs.is_multilabel:
        return None
    labels = prepared.cohort[selected].questions
    probabilities = sigmoid(logits_of_units(answers.logits[selected], labels) / temperature)
    if answers.truth is None:
        if "unlabeled" not in prepared.tables:
            return None
        method = f"best expected F1 on {answers.rows}, without labels"
        return Thresholds(expected_thresholds(probabilities), method, 0)
    values = best_thresholds(answers.truth.reshape(-1, labels) == 1, probabilities)
    return Thresholds(values, f"best F1 on {answers.rows}", answers.examples)


def find_priors(
    prepared: Prepared,
    config: Config,
    labels: LabelSet,
    answers: Answers,
    selected: str,
    temperature: float,
) -> Priors | None:
    """Return the class shares that the learner to ship is to be fitted to; None: none.

    Those of the settings, or what the unlabelled texts show, see `estimated_priors`. These count
    only once: where labels have spread by co-training, they have counted there.
    """
    truth = prepared.tables["labeled"].truth
    if (given := given_priors(config, labels, truth)) is not None:
        return given
    is_wanted = config.task == "classification" and config.training.class_prior == AUTO
    if not is_wanted or "unlabeled" not in prepared.tables:
        return None
    if prepared.engine.soft_labels is not None and config.propagation.labels in CO_TRAINED:
        return None  # labels that spread so have the unlabelled texts' shares: it has learnt them
    logits, rows = answers.logits[selected], answers.rows
    if answers.truth is not None:  # of validation rows, which may be balanced by hand
        sample, rows = sample_rows(prepared, config.seed)
        logits = predict_logits(
            *(prepared.cohort[selected], sample, prepared.hardware),
            processes=prepared.engine.processes,
        )
    return estimated_priors(softmax(logits.astype(np.float64) / temperature), truth, rows)


def accuracy_bounds(
    answers: NDArray[np.int64], peers: list[NDArray[np.int64]], classes: int
) -> tuple[float, float]:
    """Return about between what a learner's accuracy lies, from its answers and its peers', (n,).

    No lower than chance, and no higher than n rows can tell.
    """
    disagreement = float(np.mean([(answers != other).mean() for other in peers]))
    most = 1.0 - 1.0 / (len(answers) + 2)
    low, high = np.clip(
        [1.0 - factor * disagreement for factor in (MOST_ERRORS, FEWEST_ERRORS)], 1 / classes, most
    )
    return float(low), float(high)
