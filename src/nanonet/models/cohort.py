"""The cohort: a teacher and its students, each a frozen shared encoder plus its own delta."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanonet.core.config import CohortConfig, HeadConfig
from nanonet.core.errors import ConfigError
from nanonet.models.backbones import Backbone, Encoder, Pooling
from nanonet.models.heads import LinearHead, pool
from nanonet.models.layer_maps import LayerMap, layer_maps
from nanonet.models.peft import make_trainable

TEACHER = "teacher"


@dataclass(frozen=True)
class Chunk:
    """Rows of like length, padded together.

    Attributes:
        rows: positions in the batch, (b,).
        input_ids: (b, T).
        attention_mask: (b, T), 1 on real tokens.
    """

    rows: Tensor
    input_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class LearnerOutput:
    """What a learner makes of R rows, in the order of the rows.

    Attributes:
        logits: (R, C), 32 bits.
        pooled: (R, H), 32 bits.
        hidden_states: embedding output and each layer's, (real tokens, H) each, in the order of
            rows and tokens; empty unless asked for.
    """

    logits: Tensor
    pooled: Tensor
    hidden_states: tuple[Tensor, ...]


class Learner(nn.Module):
    """An encoder, its pooling and a head.

    Attributes:
        layer_map: the teacher layers that the encoder is made of, counted from 1.
    """

    def __init__(
        self, encoder: Encoder, head: LinearHead, pooling: Pooling, layer_map: LayerMap
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.pooling = pooling
        self.layer_map = layer_map

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (B, C) of token ids and mask (B, T): what is exported."""
        states = self.encoder.run_layers(self.encoder.embed(input_ids), attention_mask)
        return self._classify(pool(self.encoder.finish(states[-1]), attention_mask, self.pooling))

    def _classify(self, pooled: Tensor) -> Tensor:
        """Return logits in 32 bits, under autocast too: differences between classes are small."""
        kind = pooled.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self.head(pooled)  # type: ignore[no-any-return]
        return self.head(pooled)  # type: ignore[no-any-return]

    def read(
        self,
        chunks: list[Chunk],
        visible: list[Tensor] | None = None,
        keep_hidden_states: bool = False,
    ) -> LearnerOutput:
        """Run over all chunks.

        Args:
            chunks: the rows; together they hold each row once.
            visible: per chunk the tokens (b, T) that this learner may see (its data view); the
                chunk's own mask where None.
            keep_hidden_states: return them too.
        """
        pooled, hidden_states = [], []
        for i, chunk in enumerate(chunks):
            mask = chunk.attention_mask if visible is None else visible[i]
            embedded = self.encoder.embed(chunk.input_ids)
            states = self.encoder.run_layers(embedded, mask)
            pooled.append(pool(self.encoder.finish(states[-1]), mask, self.pooling))
            if keep_hidden_states:
                real = chunk.attention_mask.bool()
                hidden_states.append([s[real] for s in (embedded, *states)])
        vectors = torch.cat(pooled)[torch.cat([chunk.rows for chunk in chunks]).argsort()]
        if not keep_hidden_states:
            return LearnerOutput(self._classify(vectors), vectors, ())
        order = torch.cat([c.rows[c.attention_mask.nonzero()[:, 0]] for c in chunks])
        order = order.argsort(stable=True)  # stable: the tokens of a row stay in order
        packed = tuple(torch.cat(layer)[order] for layer in zip(*hidden_states, strict=True))
        return LearnerOutput(self._classify(vectors), vectors, packed)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that this learner trains, by name: its delta."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def trainable_count(self) -> int:
        """Return how many numbers this learner trains."""
        return sum(p.numel() for p in self.own_parameters().values())

    def total_count(self) -> int:
        """Return how many numbers this learner consists of, shared ones included."""
        return sum(p.numel() for p in self.parameters())


class Cohort(nn.Module):
    """A teacher (optional) and K students by name: ``teacher``, ``student1`` … ``studentK``."""

    def __init__(self, learners: dict[str, Learner]) -> None:
        super().__init__()
        self.learners = nn.ModuleDict(learners)

    def __getitem__(self, name: str) -> Learner:
        return self.learners[name]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self.learners)

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher."""
        return TEACHER in self.learners

    @property
    def students(self) -> list[str]:
        """The students' names, in order."""
        return [name for name in self.learners if name != TEACHER]

    def own_tensors(self) -> dict[str, Tensor]:
        """Return every learner's trained tensors by full name, on their device."""
        return {
            f"{learner}.{name}": parameter.detach()
            for learner in self
            for name, parameter in self[learner].own_parameters().items()
        }

    def load_own_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put trained tensors in place; all of them or none.

        Raises:
            ValueError: names or shapes differ from this cohort's.
        """
        own = self.own_tensors()
        if own.keys() != tensors.keys():
            odd = sorted(own.keys() ^ tensors.keys())[0]
            raise ValueError(f"trained tensors do not fit this cohort, for instance {odd}")
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)}, but {tuple(own[name].shape)} is needed"
                )
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def build_cohort(
    backbone: Backbone, cohort: CohortConfig, head: HeadConfig, classes: int
) -> Cohort:
    """Cut teacher and students out of one backbone; frozen tensors are shared by all.

    Raises:
        ConfigError: layer maps or PEFT methods that do not fit the backbone; nobody to train.
    """
    if cohort.students == 0 and not cohort.teacher:
        raise ConfigError("cohort.students is 0 and cohort.teacher is false: nobody would learn")
    depth = backbone.layers
    plans: dict[str, tuple[LayerMap, str]] = {}
    if cohort.teacher:
        plans[TEACHER] = (tuple(range(1, depth + 1)), cohort.teacher_peft)
    if cohort.students:
        maps = layer_maps(cohort.layer_map, depth, cohort.student_layers, cohort.students)
        for k, layer_map in enumerate(maps):
            plans[f"student{k + 1}"] = (layer_map, cohort.student_peft)
    learners = {}
    for name, (layer_map, peft) in plans.items():
        encoder = backbone.encoder.subset(layer_map)
        make_trainable(encoder, peft)
        linear = LinearHead(encoder.hidden_size, classes, head.normalize, head.scale)
        learners[name] = Learner(encoder, linear, backbone.pooling, layer_map)
    return Cohort(learners)
