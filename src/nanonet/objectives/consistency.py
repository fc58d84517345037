"""Learning from oneself: the same answer under a view, and one's own confident answers."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from nanonet.core.strict import setting
from nanonet.objectives.base import OBJECTIVES, Objective, StepView, Stream
from nanonet.objectives.functional import LogitsDistance, logits_distance


@OBJECTIVES.register("consistency")
@dataclass(frozen=True)
class Consistency(Objective):
    """The same answer under one's view as without it: D(z(view(x_u)), sg z(x_u)).

    Virtual adversarial training (arXiv 1704.03976) with the view ``adversarial``, UDA's
    consistency (arXiv 1904.12848) with others. Without a view and dropout it is 0.
    """

    distance: LogitsDistance = "kl"
    temperature: float = setting(1.0, 0.01)

    streams: ClassVar[frozenset[Stream]] = frozenset({"unlabeled"})

    def loss(self, learner: str, step: StepView) -> Tensor:
        """See `Objective.loss`."""
        own = step.own(learner, "unlabeled").logits
        target = step.clean(learner, "unlabeled").logits
        return logits_distance(own, target, self.distance, self.temperature)


@OBJECTIVES.register("pseudo_label")
@dataclass(frozen=True)
class PseudoLabel(Objective):
    """One's own confident answers as labels.

    1/R sum_i [max p_i >= threshold] CE(z(view(x_i)), y_i), where p = softmax(z(x_u)) without
    gradient and on the text as it is, and y its most probable class
    (self-training as in FixMatch, arXiv 2001.07685).
    """

    threshold: float = setting(0.9, 0.0, 1.0)

    streams: ClassVar[frozenset[Stream]] = frozenset({"unlabeled"})

    def loss(self, learner: str, step: StepView) -> Tensor:
        """See `Objective.loss`."""
        own = step.own(learner, "unlabeled").logits
        confidence, answers = step.clean(learner, "unlabeled").logits.softmax(-1).max(-1)
        losses = F.cross_entropy(own, answers, reduction="none")
        return ((confidence >= self.threshold) * losses).mean()
