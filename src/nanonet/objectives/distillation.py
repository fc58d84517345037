"""Learning from the teacher, on unlabelled rows, while the teacher itself still learns."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nanonet.core.strict import setting
from nanonet.models.attention import AttentionKind
from nanonet.models.learner import NO_PARTS, Parts
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
    reads_logits: ClassVar[bool] = False

    def parts(self) -> Parts:
        """See `Objective.parts`."""
        return frozenset({"hidden_states"}) if self.level == "hidden" else NO_PARTS

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


@OBJECTIVES.register("attention_distillation")
@dataclass(frozen=True)
class AttentionDistillation(Objective):
    """The teacher's attention maps as targets: MSE over pairs of real tokens, a mean over layers.

    ``maps = "scores"`` compares what goes into the softmax (PS-NET's code), ``"probabilities"``
    what comes out of it. Needs plain attention, which keeps fused kernels away.
    """

    maps: Literal["scores", "probabilities"] = "scores"

    streams: ClassVar[frozenset[Stream]] = frozenset({"unlabeled"})
    needs_teacher: ClassVar[bool] = True
    reads_logits: ClassVar[bool] = False

    @property
    def _kind(self) -> AttentionKind:
        return "attention_scores" if self.maps == "scores" else "attention_probabilities"

    def parts(self) -> Parts:
        """See `Objective.parts`."""
        return frozenset({self._kind})

    def loss(self, learner: str, step: StepView) -> Tensor:
        """See `Objective.loss`."""
        own = step.own(learner, "unlabeled").attention[self._kind]
        target = step.teacher("unlabeled").attention[self._kind]
        pairs = zip(own, step.layer_map(learner), strict=True)
        terms = [F.mse_loss(maps.float(), target[i - 1].float()) for maps, i in pairs]
        return torch.stack(terms).mean()


def imitated_layers(layer_map: tuple[int, ...]) -> tuple[int, ...]:
    """Return the teacher's hidden states that a student's embedding output and layers imitate."""
    contiguous = layer_map == tuple(range(layer_map[0], layer_map[-1] + 1))
    return (layer_map[0] - 1 if contiguous else 0, *layer_map)
