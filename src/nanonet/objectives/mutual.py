"""Students learning from each other."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nanonet.core.strict import setting
from nanonet.objectives.base import OBJECTIVES, Objective, StepView, Stream
from nanonet.objectives.functional import LogitsDistance, logits_distance


@OBJECTIVES.register("mutual")
@dataclass(frozen=True)
class Mutual(Objective):
    """Mutual learning: 1/(K-1) sum over the other students j of the distance to sg z_j(x_u).

    PS-NET and DisCo use MSE on logits, ramped up over the first 10-20% of the steps. With one
    student there is nobody to learn from; the plan refuses that.
    """

    distance: LogitsDistance = "kl"
    temperature: float = setting(1.0, 0.01)

    streams: ClassVar[frozenset[Stream]] = frozenset({"unlabeled"})
    min_students: ClassVar[int] = 2

    def loss(self, learner: str, step: StepView) -> Tensor:
        """See `Objective.loss`."""
        own = step.own(learner, "unlabeled").logits
        terms = [
            logits_distance(
                own, step.peer(other, "unlabeled").logits, self.distance, self.temperature
            )
            for other in step.students
            if other != learner
        ]
        return torch.stack(terms).mean()
