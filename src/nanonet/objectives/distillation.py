"""Learning from the teacher, on unlabelled rows, while the teacher itself still learns."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nanonet.core.config import setting
from nanonet.objectives.base import OBJECTIVES, Objective, StepView, Stream
from nanonet.objectives.functional import LogitsDistance, cosine_distance, logits_distance


@OBJECTIVES.register("prediction_distillation")
@dataclass(frozen=True)
class PredictionDistillation(Objective):
    """The teacher's predictions as targets: MSE on logits (PS-NET) or KL at a temperature."""

    distance: LogitsDistance = "kl"
    temperature: float = setting(1.0, 0.01)

    streams: ClassVar[frozenset[Stream]] = frozenset({"unlabeled"})
    needs_teacher: ClassVar[bool] = True

    def loss(self, learner: str, step: StepView) -> Tensor:
        """See `Objective.loss`."""
        own = step.own(learner, "unlabeled").logits
        target = step.teacher("unlabeled").logits
        return logits_distance(own, target, self.distance, self.temperature)


@OBJECTIVES.register("representation_distillation")
@dataclass(frozen=True)
class RepresentationDistillation(Objective):
    """The teacher's representations as targets.

    ``level = "pooled"`` compares pooled vectors; ``"hidden"`` compares hidden states over real
    tokens only: each of the student's layers with the teacher layer it was cut from, and the
    student's embedding output with the teacher's, or, where the layer map is one contiguous
    block, with the hidden state that enters the block (PS-NET, DisCo).
    """

    level: Literal["pooled", "hidden"] = "pooled"
    distance: Literal["cosine", "mse"] = "cosine"

    streams: ClassVar[frozenset[Stream]] = frozenset({"unlabeled"})
    needs_teacher: ClassVar[bool] = True

    def needs_hidden_states(self) -> bool:
        """See `Objective.needs_hidden_states`."""
        return self.level == "hidden"

    def loss(self, learner: str, step: StepView) -> Tensor:
        """See `Objective.loss`."""
        own, target = step.own(learner, "unlabeled"), step.teacher("unlabeled")
        if self.level == "pooled":
            return self._distance(own.pooled, target.pooled)
        pairs = zip(own.hidden_states, imitated_layers(step.layer_map(learner)), strict=True)
        terms = [
            self._distance(state.float(), target.hidden_states[i].float()) for state, i in pairs
        ]
        return torch.stack(terms).mean()

    def _distance(self, vectors: Tensor, target: Tensor) -> Tensor:
        if self.distance == "mse":
            return F.mse_loss(vectors, target)
        return cosine_distance(vectors, target)


def imitated_layers(layer_map: tuple[int, ...]) -> tuple[int, ...]:
    """Return the teacher's hidden states that a student's embedding output and layers imitate."""
    contiguous = layer_map == tuple(range(layer_map[0], layer_map[-1] + 1))
    return (layer_map[0] - 1 if contiguous else 0, *layer_map)
