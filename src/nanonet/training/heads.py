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
from nanonet.models.heads import LinearHead
from nanonet.tasks.base import Outputs, Row
from nanonet.tasks.calibration import temperature_of_confidence
from nanonet.tasks.metrics import softmax
from nanonet.tasks.stored import random_rows
from nanonet.training.display import Display
from nanonet.training.evaluation import embed, predict_logits
from nanonet.training.prepare import Prepared

INVERSE_PENALTY = 10.0  # C of a logistic regression on vectors of length 1
MOST_ITERATIONS, HISTORY = 200, 10  # of L-BFGS, whose memory is HISTORY heads
FEWEST_TEXTS, FEWEST_JUDGES, MOST_JUDGES = 256, 64, 512

Logits = NDArray[np.floating]


@dataclass(frozen=True)
class FittedHead:
    """What fitting a head has done.

    Attributes:
        texts: unlabelled ones that it was fitted to.
        judges: other texts.
        before: the share of these that the student answered as it should.
        after: the same with the fitted head.
        kept: whether the fitted head is in use: where it answers more of them so.
    """

    texts: int
    judges: int
    before: float
    after: float
    kept: bool


def fit_heads(
    prepared: Prepared, texts: int, seed: int, astray: Sequence[str], display: Display
) -> dict[str, FittedHead]:
    """Fit students' heads to the teacher's answers, and keep those that do better for it.

    Which do is seen on texts kept aside, which should be answered as the teacher does, or on
    validation rows, which should be answered as their labels say.

    Args:
        prepared: a trained cohort.
        texts: unlabelled ones to fit to, at most, of those within reach of the labels; 0: none.
        seed: draws them.
        astray: learners that are not sound; none is fitted, and none where it is the teacher.
        display: is told.

    Returns:
        By student. None of a student of another width than the teacher's; nobody where texts have
        more than one label or none, without a teacher, or with too few texts to fit to or to judge.
    """
    cohort, engine = prepared.cohort, prepared.engine
    students = [
        name for name in cohort.students if name not in astray and cohort[name].projection is None
    ]
    has_teacher = cohort.has_teacher and TEACHER not in astray
    if not (texts and len(engine.rows.unlabeled) and has_teacher and students):
        return {}
    if prepared.task.outputs != Outputs():
        return {}
    learnt, reached = engine.within_reach()
    chosen = learnt[random_rows(len(learnt), texts, seed)]
    judges: Sequence[Row] = [prepared.aside[i] for i in reached]
    truth = None
    if "validation" in prepared.tables:
        table = prepared.tables["validation"]
        judges, truth = table.encoded.ids, table.truth
    places = random_rows(len(judges), MOST_JUDGES, seed)
    if len(chosen) < FEWEST_TEXTS or len(places) < FEWEST_JUDGES:
        display.say(
            "students' heads stay as they were trained: too few texts to fit them to, or to judge"
        )
        return {}
    display.say(f"fitting students' heads to the teacher's answers to {len(chosen)} texts")
    rows = [*(engine.rows.unlabeled[i] for i in chosen), *(judges[i] for i in places)]
    hardware, processes = prepared.hardware, engine.processes
    answers = predict_logits(cohort[TEACHER], rows, hardware, processes=processes)
    right = answers[len(chosen) :].argmax(-1) if truth is None else truth[places]
    found = {}
    for name in students:
        head = cohort[name].head
        normalize = head.normalize
        vectors = embed(cohort[name], rows, hardware, processes=processes, normalize=normalize)
        found[name] = done = fit_head(head, vectors, answers[: len(chosen)], right)
        should = "as the teacher does" if truth is None else "as they are labelled"
        display.say(
            f"{name} {'now answers' if done.kept else 'would answer'} {done.after:.1%} of"
            f" {done.judges} other texts {should} ({done.before:.1%} before)"
            f"{'' if done.kept else ': its head stays as it was'}"
        )
    return found


def fit_head(
    head: LinearHead, vectors: NDArray[np.float32], answers: Logits, right: NDArray[np.int64]
) -> FittedHead:
    """Fit a head to answers to some texts; keep it if it is right on more of others than before.

    It is scaled so that the mean confidence on these others is what it was: how sure a student may
    be is not what it learns here, and teachers are too sure.

    Args:
        head: is changed in place.
        vectors: that the head reads, of n texts to fit to, then of m others, (n + m, H).
        answers: logits of the texts to fit to, (n, C).
        right: class indexes of the others, (m,).
    """
    # On the CPU and in 64 bits: the solution hardly depends on how rounding errors fall.
    fitted = copy.deepcopy(head).cpu().double()
    count = len(answers)
    known, others = (torch.from_numpy(part).double() for part in np.split(vectors, [count]))
    wanted = torch.from_numpy(softmax(answers.astype(np.float64)))

    def judge() -> tuple[float, Logits]:
        with torch.no_grad():
            logits: Logits = fitted(others).numpy()
        return float((logits.argmax(-1) == right).mean()), logits

    before, logits = judge()
    confidence = float(softmax(logits).max(-1).mean())
    size = float(known.square().sum(-1).mean()) * head.scale**2 / INVERSE_PENALTY
    optimizer = torch.optim.LBFGS(
        fitted.linear.parameters(),
        max_iter=MOST_ITERATIONS,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        misfit = cross_entropy(fitted(known), wanted, reduction="sum")
        total = (misfit + 0.5 * size * fitted.linear.weight.square().sum()) / count
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    after, logits = judge()
    if kept := after > before and bool(np.isfinite(logits).all()):
        temperature = temperature_of_confidence(logits, confidence)
        fitted.linear.weight.data /= temperature
        fitted.linear.bias.data /= temperature
        head.load_state_dict(fitted.state_dict())
    return FittedHead(count, len(right), before, after, kept)
