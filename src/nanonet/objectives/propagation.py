"""Learning from labels that were spread through the neighbourhoods of the teacher's space."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from nanonet.objectives.base import OBJECTIVES, Objective, StepView, Stream


@OBJECTIVES.register("propagation")
@dataclass(frozen=True)
class Propagation(Objective):
    """Cross-entropy with propagated labels: 1/R sum_i c_i CE(z(x_i), argmax q_i).

    Each row's most probable class counts as its label, weighed by the row's confidence c_i. The
    probabilities q_i themselves are too flat to learn from: they would teach doubt.
    """

    streams: ClassVar[frozenset[Stream]] = frozenset({"unlabeled"})
    needs_soft_labels: ClassVar[bool] = True

    def loss(self, learner: str, step: StepView) -> Tensor:
        """See `Objective.loss`."""
        targets = step.soft_labels
        logits = step.own(learner, "unlabeled").logits
        losses = F.cross_entropy(logits, targets.probabilities.argmax(-1), reduction="none")
        return (targets.confidence * losses).mean()
