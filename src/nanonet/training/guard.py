"""A guard against unlabelled text that leads a learner astray while it trains.

What a learner makes of unlabelled text teaches it and the others, so that an error can feed itself:
all texts become one class, or what the labels said is forgotten. Now and then every learner answers
the same few texts, and is held against itself at its best and against a reference that knows the
labels alone. A learner that has gone astray takes back what it was when it was last seen sound, and
from then on learns more slowly and less from unlabelled text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanonet.core.config import Config
from nanonet.models.cohort import Cohort
from nanonet.models.learner import Learner
from nanonet.tasks.base import Row
from nanonet.tasks.stored import random_rows
from nanonet.tasks.tokenization import Ids
from nanonet.training.device import Hardware
from nanonet.training.evaluation import predict_logits
from nanonet.training.passages import Sentences, place
from nanonet.training.processes import ALONE, Processes
from nanonet.training.propagation import classifier

ROWS = 128  # unlabelled rows, and labelled ones, that are asked at most
FEWEST_ROWS = 24  # unlabelled ones: fewer tell nothing
# What is no longer sound. Figures in docs/experiments.md.
LEAST_CLASSES = 0.5  # of the further classes that the reference gives: fewer are a collapse
# The same of a learner that knows its labelled texts. The reference does not know how common the
# classes are, and may give half of the texts a class that few have: such a learner may be right.
LEAST_OF_KNOWING, KNOWING = 0.05, 0.75
MOST_FORGOTTEN = 0.25  # fall of the accuracy on labelled texts, from its best
FEWEST_FORGOTTEN = 4  # labelled texts that such a fall must be at least
MOST_DRIFT = 0.3  # fall of the agreement with the reference where that is sure, from its best
MOST_ALONE = 0.3  # fall of the agreement with the other learners, of the one that agrees least
SLOWER = 0.5  # factor, at each alarm, of the learning rate and of all losses on unlabelled text
MOST_ALARMS = 3  # of a learner, which then learns no more


@dataclass(frozen=True)
class Health:
    """How a learner does.

    Attributes:
        classes: effective number of classes among its answers to unlabelled texts: the exponential
            of the entropy of their shares.
        remembered: accuracy on labelled texts.
        kept: share of the texts of which the reference is sure that get the same answer from it.
        agreed: share of the unlabelled texts that get the same answer from another learner, mean
            over all others; 1 where there is none.
    """

    classes: float
    remembered: float
    kept: float
    agreed: float


@dataclass(frozen=True)
class Alarm:
    """A learner was found astray.

    Attributes:
        step: steps that were done then.
        learner: its name.
        reason: in words.
        back_to: the step whose tensors it took back.
    """

    step: int
    learner: str
    reason: str
    back_to: int

    def describe(self) -> str:
        """Return a line about it."""
        return f"step {self.step}: {self.learner} {self.reason}; back to step {self.back_to}"


@dataclass
class Guard:
    """Watches the learners of a run.

    Attributes:
        labeled: rows, in an order by chance; the first of them are asked.
        labels: their class indexes.
        pool: unlabelled rows, some of which are asked.
        every: share of the run's steps between two looks.
        seed: draws those.
        alarms: of the run so far.
        health: of each learner when it was last looked at.
    """

    labeled: Sequence[Row]
    labels: NDArray[np.int64]
    pool: Sequence[Row]
    every: float
    seed: int
    hardware: Hardware
    processes: Processes = ALONE
    alarms: list[Alarm] = field(default_factory=list)
    health: dict[str, Health] = field(default_factory=dict)
    _places: Ids = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    _rows: list[Row] = field(default_factory=list)  # those of the pool that are asked
    _reference: NDArray[np.float64] | None = None  # (n, C), what the labels alone say of them
    _best: dict[str, Health] = field(default_factory=dict)  # each figure's highest so far
    _sound: dict[str, tuple[int, dict[str, Tensor]]] = field(default_factory=dict)

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether to look when so many of all steps are done."""
        return step == steps or step % max(1, round(self.every * steps)) == 0

    def refer(
        self, learner: Learner, within_reach: Ids, sentences: Sentences | None = None
    ) -> None:
        """Draw the rows to ask; keep what the labels alone say of them.

        Args:
            learner: in whose space, as it now is.
            within_reach: places of the pool's rows that may be asked; with few, nobody looks.
            sentences: see `place`.
        """
        if len(within_reach) < FEWEST_ROWS:
            return
        drawn = within_reach[random_rows(len(within_reach), ROWS, self.seed)]
        self._places, self._rows = drawn, [self.pool[i] for i in drawn]
        known, asked = (
            place(learner, rows, self.hardware, sentences, self.processes)
            for rows in (self.labeled, self._rows)
        )
        self._reference = classifier().fit(known, self.labels).predict_proba(asked)

    def trust(self, learner: str) -> float:
        """Return the factor of a learner's rate and of its losses on unlabelled text."""
        count = sum(alarm.learner == learner for alarm in self.alarms)
        return 0.0 if count >= MOST_ALARMS else SLOWER**count

    def astray(self, cohort: Cohort) -> list[str]:
        """Return the learners that are not sound as they now are; change nothing."""
        return [] if self._reference is None else list(self._judge(cohort)[1])

    def look(self, step: int, cohort: Cohort) -> list[Alarm]:
        """Look at all learners; put those that are astray back, and return the alarms."""
        if self._reference is None:
            return []
        healths, reasons = self._judge(cohort)
        found = []
        for name, health in healths.items():
            if self.trust(name) == 0.0:
                continue  # it stays what it is
            own = {n: t for n, t in cohort.own_tensors().items() if n.startswith(f"{name}.")}
            if name not in reasons:
                self._sound[name] = step, {n: t.clone() for n, t in own.items()}
                self._best[name] = _highest(health, self._best.get(name, health))
            elif name in self._sound:
                back_to, tensors = self._sound[name]
                for full, tensor in own.items():
                    tensor.copy_(tensors[full])
                found.append(Alarm(step, name, reasons[name], back_to))
                continue  # its health is what it was then
            self.health[name] = health  # it may be not sound yet, but have yet to learn
        self.alarms += found
        return found

    def _judge(self, cohort: Cohort) -> tuple[dict[str, Health], dict[str, str]]:
        """Return how every learner does, and what is wrong with those that are not sound."""
        healths = self._examine(cohort)
        lowest = min(health.agreed for health in healths.values())
        alone = [name for name, health in healths.items() if health.agreed == lowest]
        # Of two learners that no longer agree nobody can tell which one is wrong.
        most_alone = alone[0] if len(alone) == 1 and len(healths) > 2 else None
        reasons = {
            name: self._what_is_wrong(health, self._best.get(name, health), name == most_alone)
            for name, health in healths.items()
        }
        return healths, {name: reason for name, reason in reasons.items() if reason is not None}

    def _examine(self, cohort: Cohort) -> dict[str, Health]:
        """Return how every learner does."""
        reference = self._reference
        assert reference is not None
        told, asked = (
            {
                name: predict_logits(
                    cohort[name], rows, self.hardware, processes=self.processes
                ).argmax(1)
                for name in cohort
            }
            for rows in (self.labeled[:ROWS], self._rows)
        )
        sure = reference.max(1) >= np.median(reference.max(1))
        return {
            name: Health(
                _effective(own, reference.shape[1]),
                float((told[name] == self.labels[:ROWS]).mean()),
                float((own == reference.argmax(1))[sure].mean()),
                _agreement(own, [answers for other, answers in asked.items() if other != name]),
            )
            for name, own in asked.items()
        }

    def _what_is_wrong(self, health: Health, best: Health, most_alone: bool) -> str | None:
        assert self._reference is not None
        expected = _effective(self._reference.argmax(1), self._reference.shape[1])
        least = LEAST_OF_KNOWING if health.remembered >= KNOWING else LEAST_CLASSES
        if health.classes - 1 < least * (expected - 1):
            return (
                f"gives texts about {health.classes:.1f} classes, where the labels alone give"
                f" {expected:.1f}"
            )
        forgotten = best.remembered - health.remembered
        if forgotten > MOST_FORGOTTEN and forgotten * len(self.labels[:ROWS]) >= FEWEST_FORGOTTEN:
            return (
                f"is right on {health.remembered:.0%} of labelled texts after {best.remembered:.0%}"
            )
        if best.kept - health.kept > MOST_DRIFT:
            return (
                f"answers {health.kept:.0%} of clear texts as the labels alone do"
                f" after {best.kept:.0%}"
            )
        if most_alone and best.agreed - health.agreed > MOST_ALONE:
            return f"agrees with others on {health.agreed:.0%} of texts after {best.agreed:.0%}"
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint has to hold as tensors, see `state`."""
        if self._reference is None:
            return {}
        kept = {f"sound/{n}": t for _, own in self._sound.values() for n, t in own.items()}
        asked = {"places": self._places, "reference": self._reference}
        return {**kept, **{name: torch.from_numpy(values) for name, values in asked.items()}}

    def summary(self) -> dict[str, Any]:
        """Return what a run's summary tells."""
        return {
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "health": {name: asdict(value) for name, value in self.health.items()},
        }

    def state(self) -> dict[str, Any]:
        """Return the rest of what a checkpoint has to hold."""
        return {
            **self.summary(),
            "best": {name: asdict(value) for name, value in self._best.items()},
            "sound": {name: step for name, (step, _) in self._sound.items()},
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take over what `tensors` and `state` have given.

        Raises:
            KeyError, TypeError: they are damaged.
        """
        self.alarms = [Alarm(**values) for values in state["alarms"]]
        self.health = {name: Health(**values) for name, values in state["health"].items()}
        self._best = {name: Health(**values) for name, values in state["best"].items()}
        if "reference" in tensors:
            self._reference, self._places = tensors["reference"].numpy(), tensors["places"].numpy()
            self._rows = [self.pool[i] for i in self._places]
        own = {n.removeprefix("sound/"): t for n, t in tensors.items() if n.startswith("sound/")}
        self._sound = {
            name: (int(step), {n: t for n, t in own.items() if n.startswith(f"{name}.")})
            for name, step in state["sound"].items()
        }


def make_guard(
    labeled: Sequence[Row],
    labels: NDArray[np.int64],
    unlabeled: Sequence[Row],
    config: Config,
    hardware: Hardware,
    processes: Processes = ALONE,
) -> Guard:
    """Return a guard that has not looked yet."""
    order = random_rows(len(labeled), len(labeled), config.seed)
    known = [labeled[i] for i in order]
    every, seed = config.guard.every, config.seed
    return Guard(known, labels[order], unlabeled, every, seed, hardware, processes)


def _effective(answers: NDArray[np.int64], classes: int) -> float:
    """Return the exponential of the entropy of the answers' shares: 1 to the number of classes."""
    shares = np.bincount(answers, minlength=classes) / len(answers)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _agreement(own: NDArray[np.int64], others: list[NDArray[np.int64]]) -> float:
    return float(np.mean([(own == other).mean() for other in others])) if others else 1.0


def _highest(one: Health, other: Health) -> Health:
    return Health(
        *(max(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))
    )
