"""The contract between objectives and the engine.

An objective is a frozen dataclass: its fields are its settings (the tables under
``phases.<phase>.objectives.<name>`` in the configuration). For one learner and one step it
returns one scalar. It reads the step through a `StepView`, which detaches everyone but the
learner: the losses of all learners can be added up and need only one backward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from nanonet.core.errors import ConfigError
from nanonet.core.registry import Registry
from nanonet.core.strict import build, setting
from nanonet.models.learner import NO_PARTS, LearnerOutput, Parts

Stream = Literal["labeled", "unlabeled"]


@dataclass(frozen=True)
class SoftTargets:
    """Class probabilities (U, C) of units and how far to trust each, (U,), from 0 to 1."""

    probabilities: Tensor
    confidence: Tensor


class StepView(Protocol):
    """What an objective sees of a step."""

    @property
    def labels(self) -> Tensor:
        """Class indexes of the labelled rows' units (see `LearnerOutput`), (U,)."""

    @property
    def class_weights(self) -> Tensor | None:
        """How much labelled units of each class count, (C,); None: all the same."""

    @property
    def soft_labels(self) -> SoftTargets:
        """Propagated labels of the unlabelled rows' units."""

    @property
    def students(self) -> list[str]:
        """The students' names."""

    def layer_map(self, learner: str) -> tuple[int, ...]:
        """Return the teacher layers that a learner is made of, counted from 1."""

    def own(self, learner: str, stream: Stream) -> LearnerOutput:
        """Return the learner's output, with gradient, on its own view of the rows."""

    def teacher(self, stream: Stream) -> LearnerOutput:
        """Return the teacher's output without gradient, dropout or views: a target."""

    def peer(self, learner: str, stream: Stream) -> LearnerOutput:
        """Return another student's output without gradient.

        On that student's own view where it trains in the same phase, on the clean text elsewhere.
        """

    def clean(self, learner: str, stream: Stream) -> LearnerOutput:
        """Return the learner's own output on the clean text, without gradient or dropout."""


@dataclass(frozen=True)
class Objective:
    """Base of all objectives.

    Attributes:
        weight: factor of the loss.
        ramp_up: share of the phase's steps over which the factor grows linearly from 0.
        streams: which rows it reads.
        needs_teacher: it reads the teacher's outputs.
        needs_soft_labels: it reads propagated labels.
        min_students: students that it needs, those whose outputs it reads included.
        reads_logits: its gradient reaches the head; that of one on representations does not.
    """

    weight: float = setting(1.0, 0.0)
    ramp_up: float = setting(0.0, 0.0, 1.0)

    streams: ClassVar[frozenset[Stream]] = frozenset({"labeled"})
    needs_teacher: ClassVar[bool] = False
    needs_soft_labels: ClassVar[bool] = False
    min_students: ClassVar[int] = 0
    reads_logits: ClassVar[bool] = True

    def weight_at(self, progress: float) -> float:
        """Return the factor at ``progress`` (0 at the phase's first step, towards 1)."""
        if self.ramp_up == 0.0:
            return self.weight
        return self.weight * min(1.0, progress / self.ramp_up)

    def parts(self) -> Parts:
        """Return what it reads of outputs beside logits and pooled vectors."""
        return NO_PARTS

    def loss(self, learner: str, step: StepView) -> Tensor:
        """Return the unweighted loss of one learner, a scalar."""
        raise NotImplementedError


OBJECTIVES: Registry[type[Objective]] = Registry("objective")


def build_objectives(tables: Mapping[str, Mapping[str, Any]], phase: str) -> dict[str, Objective]:
    """Return a phase's objectives from their tables; those of weight 0 are left out.

    Raises:
        ConfigError: unknown objective or setting, value out of range.
    """
    made = {}
    prefix = f"phases.{phase}" if phase != "warmup" else phase
    for name, settings in tables.items():
        where = f"{prefix}.objectives.{name}"
        try:
            kind = OBJECTIVES.get(name)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        objective = build(kind, settings, where)
        if objective.weight > 0.0:
            made[name] = objective
    return made
