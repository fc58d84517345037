"""Students' heads, fitted in the end to what the teacher says of unlabelled texts.

A head is a linear map: with the encoder at rest its best weights solve a convex problem, which
gradient steps on small batches, most texts seen once, leave unsolved (``docs/experiments.md``).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from nanonet.models.cohort import TEACHER
from nanonet.models.learner import Learner, as_classes
from nanonet.tasks.base import Row
from nanonet.tasks.metrics import softmax
from nanonet.tasks.stored import random_rows
from nanonet.training.display import Display
from nanonet.training.evaluation import embed, predict_logits
from nanonet.training.prepare import Prepared

INVERSE_PENALTY = 10.0  # C of a logistic regression on vectors of length 1
MOST_ITERATIONS = 500


@dataclass(frozen=True)
class FittedHead:
    """What fitting a head has done.

    Attributes:
        texts: unlabelled ones that it was fitted to.
        before: the share of other texts on which the student answered as its teacher does.
        after: the same with the fitted head.
        kept: whether the fitted head is in use: where it is nearer to the teacher.
    """

    texts: int
    before: float
    after: float
    kept: bool


def fit_heads(
    prepared: Prepared, texts: int, seed: int, astray: Sequence[str], display: Display
) -> dict[str, FittedHead]:
    """Fit students' heads to the teacher's answers, and keep those that come nearer to it.

    Whether one does is seen on texts that nobody has learnt from: those kept aside, or validation
    texts, whose labels are not looked at.

    Args:
        prepared: a trained cohort.
        texts: unlabelled ones to fit to, at most, of those within reach of the labels; 0: none.
        seed: draws them.
        astray: learners that are not sound; none is fitted, and none where it is the teacher.
        display: is told.

    Returns:
        By student. None of a student of another width than the teacher's, or whose head is not
        trained; nobody without a teacher, or without texts to fit to and to judge by.
    """
    cohort, engine = prepared.cohort, prepared.engine
    judges: Sequence[Row] = prepared.aside
    if "validation" in prepared.tables:
        judges = prepared.tables["validation"].encoded.ids
    learnt, _ = engine.within_reach()
    sound = [name for name in cohort.students if name not in astray and _fits(cohort[name])]
    chosen = learnt[random_rows(len(learnt), texts, seed)]
    has_teacher = cohort.has_teacher and TEACHER not in astray
    if not (has_teacher and sound and len(chosen) and len(judges)):
        return {}
    display.say(f"fitting students' heads to the teacher's answers to {len(chosen)} texts")
    rows = [*(engine.rows.unlabeled[i] for i in chosen), *judges]
    hardware, processes = prepared.hardware, engine.processes
    answers = predict_logits(cohort[TEACHER], rows, hardware, processes=processes)
    found = {}
    for name in sound:
        normalize = cohort[name].head.normalize
        vectors = embed(cohort[name], rows, hardware, processes=processes, normalize=normalize)
        found[name] = head = _fit(cohort[name], vectors, answers, len(chosen))
        display.say(
            f"{name} answers {head.after:.1%} of other texts like the teacher, {head.before:.1%}"
            f" before{'' if head.kept else ': its head stays as it was'}"
        )
    return found


def _fits(student: Learner) -> bool:
    """Whether the head is trained, and reads what `embed` gives and nothing else."""
    trained = student.head.linear.weight.requires_grad
    return trained and student.projection is None and student.outputs.level == "document"


def _fit(
    student: Learner, vectors: NDArray[np.float32], answers: NDArray[np.float32], count: int
) -> FittedHead:
    """Fit a head to the first ``count`` of the texts, judge by the others.

    Args:
        student: whose head it is.
        vectors: that the head reads, (n, H).
        answers: the teacher's logits (U, C) of the same texts.
        count: texts to fit to.
    """
    # On the CPU and in 64 bits: the solution does not depend on how rounding errors fall.
    head = copy.deepcopy(student.head).cpu().double()
    rows = torch.from_numpy(vectors).double()
    units = count * student.questions
    wanted = torch.from_numpy(softmax(answers[:units].astype(np.float64)))

    def answer(places: slice) -> Tensor:
        return as_classes(head(rows[places]), student.outputs)

    def agreement() -> float:
        with torch.no_grad():
            said = answer(slice(count, None)).argmax(-1).numpy()
        return float((said == answers[units:].argmax(-1)).mean())

    before = agreement()
    size = float(rows[:count].square().sum(-1).mean()) * head.scale**2 / INVERSE_PENALTY
    optimizer = torch.optim.LBFGS(
        head.linear.parameters(), max_iter=MOST_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        misfit = cross_entropy(answer(slice(count)), wanted, reduction="sum")
        total = (misfit + 0.5 * size * head.linear.weight.square().sum()) / count
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    after = agreement()
    if after >= before:
        student.head.load_state_dict(head.state_dict())
    return FittedHead(count, before, after, after >= before)
