"""Learning from labels, and the teacher's learning from its students."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nanonet.objectives.base import OBJECTIVES, Objective, StepView
from nanonet.objectives.functional import soft_cross_entropy


@OBJECTIVES.register("supervised")
@dataclass(frozen=True)
class Supervised(Objective):
    """Cross-entropy with the labels: CE(z(x_l), y), a mean weighted by the class weights."""

    def loss(self, learner: str, step: StepView) -> Tensor:
        """See `Objective.loss`."""
        logits = step.own(learner, "labeled").logits
        return F.cross_entropy(logits, step.labels, weight=step.class_weights)


@OBJECTIVES.register("feedback")
@dataclass(frozen=True)
class Feedback(Objective):
    """The students' feedback to the teacher: (1/K) sum_k CE(z_T(x_l), sg p_k(x_l)).

    PS-NET's second term of the teacher's loss ("belittle"). With ``supervised.weight`` = beta and
    ``feedback.weight`` = 1 - beta it is theirs; beta is 1 in all their classification scripts.
    """

    min_students: ClassVar[int] = 1

    def loss(self, learner: str, step: StepView) -> Tensor:
        """See `Objective.loss`."""
        own = step.own(learner, "labeled").logits
        terms = [
            soft_cross_entropy(own, step.peer(student, "labeled").logits.softmax(-1))
            for student in step.students
        ]
        return torch.stack(terms).mean()
