"""A learner: a frozen encoder, shared with others, and what it trains itself; and what it reads."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanonet.models.attention import AttentionKind, Record, recorded_attention
from nanonet.models.encoders import Encoder, Pooling
from nanonet.models.heads import LinearHead, pool, pool_units
from nanonet.models.layer_maps import LayerMap
from nanonet.models.peft import PEFT
from nanonet.tasks.base import Outputs

Part = Literal["hidden_states"] | AttentionKind
Parts = frozenset[Part]
NO_PARTS: Parts = frozenset()
Kind = Literal[
    "units", "tokens", "pairs"
]  # what there is a value for: pairs are of tokens of a row
Gather = Callable[[Tensor, Kind], Tensor]
ATTENTION: frozenset[AttentionKind] = frozenset({"attention_scores", "attention_probabilities"})


@dataclass(frozen=True)
class Units:
    """The sentences of a chunk's rows.

    Attributes:
        token_types: (b, T).
        shares: of each token in each sentence's mean, (b, S, T).
        features: of each sentence, (b, S, F).
        counts: sentences of each row, (b,); what is beyond is padding.
    """

    token_types: Tensor
    shares: Tensor
    features: Tensor
    counts: Tensor

    @property
    def real(self) -> Tensor:
        """Where there is a sentence, (b, S)."""
        places = torch.arange(self.shares.shape[1], device=self.counts.device)
        return places < self.counts[:, None]

    @property
    def packed_features(self) -> Tensor:
        """Features (U, F) of real sentences, in the order of rows and sentences."""
        return self.features[self.real]

    def take(self, places: Tensor) -> "Units":
        """Return those of some rows."""
        parts = (self.token_types, self.shares, self.features, self.counts)
        return Units(*(part[places] for part in parts))


@dataclass(frozen=True)
class Chunk:
    """Rows of like length, padded together.

    Attributes:
        rows: positions in the batch, (b,).
        input_ids: (b, T).
        attention_mask: (b, T), 1 on real tokens.
        units: where units are sentences; None where a unit is a row.
    """

    rows: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    units: Units | None = None

    @property
    def unit_rows(self) -> Tensor:
        """The row of each unit, (U,)."""
        return self.rows if self.units is None else self.rows.repeat_interleave(self.units.counts)

    def take(self, places: Tensor) -> "Chunk":
        """Return some of the rows, as they are padded here."""
        units = None if self.units is None else self.units.take(places)
        rows, input_ids, mask = self.rows, self.input_ids, self.attention_mask
        return Chunk(rows[places], input_ids[places], mask[places], units)


@dataclass(frozen=True)
class ChunkView:
    """How a learner sees a chunk.

    Attributes:
        mask: the tokens that it may attend to, (b, T).
        positions: of the tokens in their row, (b, T); in order where None.
        features: factor of the embedding output, (b, 1, H); 1 where None.
        noise: what is added to the embedding output, (b, T, H); nothing where None.
    """

    mask: Tensor
    positions: Tensor | None = None
    features: Tensor | None = None
    noise: Tensor | None = None

    def take(self, places: Tensor) -> "ChunkView":
        """Return the view of some rows."""
        parts = (self.positions, self.features, self.noise)
        return ChunkView(self.mask[places], *(None if p is None else p[places] for p in parts))


@dataclass(frozen=True)
class LearnerOutput:
    """What a learner makes of R rows, which hold U units (R where a unit is a row), in order.

    Attributes:
        logits: (U, C), 32 bits. A single logit z is given as (0, z): the softmax of the two is the
            sigmoid of z, so that objectives know but one link. Where a text may have many labels,
            each of them is a unit of it.
        pooled: (V, H), 32 bits; in the teacher's width. V is U or, with many labels, R.
        hidden_states: embedding output and each layer's, (real tokens, H) each, in the order of
            rows and tokens, in the teacher's width; empty unless asked for.
        attention: by kind, each layer's maps, (pairs of real tokens, heads) each, in the order of
            rows, queries and keys; empty unless asked for.
    """

    logits: Tensor
    pooled: Tensor
    hidden_states: tuple[Tensor, ...] = ()
    attention: Mapping[AttentionKind, tuple[Tensor, ...]] = field(default_factory=dict)


class Learner(nn.Module):
    """An encoder, its pooling and a head.

    Attributes:
        layer_map: the teacher layers that the encoder is made of or imitates, counted from 1.
        peft: the PEFT method that was applied to the encoder.
        projection: into the teacher's width, where the encoder's differs: serves only training.
        outputs: what it answers.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: LinearHead,
        pooling: Pooling,
        layer_map: LayerMap,
        peft: str = "bitfit",
        projection: nn.Linear | None = None,
        outputs: Outputs = Outputs(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.pooling = pooling
        self.layer_map = layer_map
        self.peft = peft
        self.projection = projection
        self.outputs = outputs

    @property
    def classes(self) -> int:
        """How many classes C `read` tells apart."""
        return 2 if self.outputs.link == "sigmoid" else self.head.linear.out_features

    @property
    def questions(self) -> int:
        """How many units each pooled vector answers: one, or one for each label."""
        return self.head.linear.out_features if self.outputs.is_multilabel else 1

    @property
    def is_encoder_idle(self) -> bool:
        """Whether the head reads features alone."""
        return self.outputs.features > 0 and self.head.reads_features_alone

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        pooling: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Return logits (B, C) of token ids and mask (B, T): what is exported.

        Where units are sentences: logits (B, S) of token types (B, T), pooling shares (B, S, T)
        and features (B, S, F) besides.
        """
        if token_type_ids is None or pooling is None:
            states = self.encoder.run_layers(self.encoder.embed(input_ids), attention_mask)
            hidden = self.encoder.finish(states[-1])
            return self.classify(pool(hidden, attention_mask, self.pooling))
        embedded = self.encoder.embed_typed(input_ids, token_type_ids)
        hidden = self.encoder.finish(self.encoder.run_layers(embedded, attention_mask)[-1])
        return self.classify(pool_units(hidden, attention_mask, pooling), features).squeeze(-1)

    def classify(self, pooled: Tensor, features: Tensor | None = None) -> Tensor:
        """Return logits in 32 bits, under autocast too: differences between classes are small."""
        kind = pooled.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self.head(pooled, features)  # type: ignore[no-any-return]
        return self.head(pooled, features)  # type: ignore[no-any-return]

    def embed(self, chunk: Chunk, view: ChunkView) -> Tensor:
        """Return the embedding output (b, T, H) of a chunk under a view."""
        if chunk.units is None:
            embedded = self.encoder.embed(chunk.input_ids, view.positions)
        else:
            types = chunk.units.token_types
            embedded = self.encoder.embed_typed(chunk.input_ids, types, view.positions)
        if view.features is not None:
            embedded = embedded * view.features.to(embedded.dtype)
        if view.noise is not None:
            embedded = embedded + view.noise.to(embedded.dtype)
        return embedded

    def run(self, embedded: Tensor, chunk: Chunk, view: ChunkView) -> tuple[list[Tensor], Tensor]:
        """Return each layer's hidden states (b, T, H) and the units' pooled vectors (U, H)."""
        states = self.encoder.run_layers(embedded, view.mask, view.positions)
        return states, self._pool(states[-1], chunk, view)

    def run_chunks(
        self, embedded: list[Tensor], chunks: list[Chunk], views: list[ChunkView]
    ) -> list[tuple[list[Tensor], Tensor]]:
        """Return what `run` does for each chunk."""
        states = self.encoder.run_chunks(
            embedded,
            [chunk.attention_mask for chunk in chunks],
            [view.mask for view in views],
            [view.positions for view in views],
        )
        each = zip(states, chunks, views, strict=True)
        return [(own, self._pool(own[-1], chunk, view)) for own, chunk, view in each]

    def _pool(self, last: Tensor, chunk: Chunk, view: ChunkView) -> Tensor:
        """Return the units' pooled vectors (U, H) of the last layer's hidden states (b, T, H)."""
        hidden = self.encoder.finish(last)
        if chunk.units is None:
            return pool(hidden, view.mask, self.pooling)
        return pool_units(hidden, view.mask, chunk.units.shares)[chunk.units.real]

    def read(
        self,
        chunks: list[Chunk],
        views: list[ChunkView] | None = None,
        keep: Parts = NO_PARTS,
        gather: Gather = lambda values, kind: values,
    ) -> LearnerOutput:
        """Run over all chunks.

        Args:
            chunks: the rows; together they hold each row once.
            views: how this learner sees each chunk; as it is where None.
            keep: what to return beside logits and pooled vectors.
            gather: returns values of all rows, given those of the rows of these chunks, both in
                the order of rows. The head reads all rows: its gradient is that of all.
        """
        seen = [ChunkView(chunk.attention_mask) for chunk in chunks] if views is None else views
        embedded = [self.embed(chunk, view) for chunk, view in zip(chunks, seen, strict=True)]
        records: list[Record] = [{} for _ in chunks]
        if ATTENTION & keep:
            runs = []
            for i, parts in enumerate(zip(embedded, chunks, seen, strict=True)):
                with recorded_attention(ATTENTION & keep) as records[i]:
                    runs.append(self.run(*parts))
        else:
            runs = self.run_chunks(embedded, chunks, seen)
        packed = [
            self._kept(chunk, [first, *states], record, keep)
            for chunk, first, (states, _), record in zip(
                chunks, embedded, runs, records, strict=True
            )
        ]
        # stable: the sentences of a row stay in order
        order = torch.cat([chunk.unit_rows for chunk in chunks]).argsort(stable=True)
        own = torch.cat([vectors for _, vectors in runs])[order]
        vectors = gather(own, "units")
        features = [c.units.packed_features for c in chunks if c.units is not None]
        read_beside = gather(torch.cat(features)[order], "units") if features else None
        logits = self.classify(vectors, read_beside)
        if self.outputs.link == "sigmoid":
            logits = F.pad(logits.reshape(-1, 1), (1, 0))
        if self.projection is not None:
            vectors = gather(self._project(own), "units")
        if not keep:
            return LearnerOutput(logits, vectors)
        lengths = [chunk.attention_mask.sum(-1) for chunk in chunks]
        kept = {
            part: tuple(
                gather(values, "tokens" if part == "hidden_states" else "pairs")
                for values in _in_order(packed, part, chunks, lengths)
            )
            for part in sorted(keep)  # many processes gather in the same order
        }
        hidden_states = kept.pop("hidden_states", ())
        return LearnerOutput(logits, vectors, hidden_states, kept)  # type: ignore[arg-type]

    def _kept(
        self, chunk: Chunk, states: list[Tensor], record: Record, keep: Parts
    ) -> dict[Part, list[Tensor]]:
        """Return what `read` keeps of a chunk, of real tokens only, layer by layer."""
        real = chunk.attention_mask.bool()
        pairs = real[:, :, None] & real[:, None, :]
        parts: dict[Part, list[Tensor]] = {
            kind: [a.permute(0, 2, 3, 1)[pairs] for a in maps] for kind, maps in record.items()
        }
        if "hidden_states" in keep:
            parts["hidden_states"] = [self._project(s[real]) for s in states]
        return parts

    def _project(self, vectors: Tensor) -> Tensor:
        return vectors if self.projection is None else self.projection(vectors)

    def merged(self) -> "Learner":
        """Return a copy of the family's plain shape that computes the same: what is exported.

        What needs no merging is shared with this learner.
        """
        shared = {id(t): t for t in [*self.parameters(), *self.buffers()]}
        shared[id(self.encoder.config)] = self.encoder.config
        plain = copy.deepcopy(self, memo=shared)
        plain.projection = None
        PEFT.get(self.peft).merge(plain.encoder)
        return plain

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that this learner trains, by name: its delta."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def trainable_count(self) -> int:
        """Return how many numbers this learner trains."""
        return sum(p.numel() for p in self.own_parameters().values())

    def total_count(self) -> int:
        """Return how many numbers this learner consists of, shared ones included."""
        return sum(p.numel() for p in self.parameters())


class FeatureScorer(nn.Module):
    """What is left of a `Learner` whose head reads features alone: no encoder."""

    def __init__(self, head: LinearHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        pooling: Tensor,
        features: Tensor,
    ) -> Tensor:
        """Return logits (B, S) of features (B, S, F), see `Learner.forward`."""
        return self.head.score_features(features).squeeze(-1)


def _in_order(
    packed: list[dict[Part, list[Tensor]]], part: Part, chunks: list[Chunk], lengths: list[Tensor]
) -> tuple[Tensor, ...]:
    """Return each layer's values of all chunks, in the order of rows and tokens."""
    power = 1 if part == "hidden_states" else 2  # values per row: its tokens, or pairs of them
    counts = [n**power for n in lengths]
    rows = [c.rows.repeat_interleave(n) for c, n in zip(chunks, counts, strict=True)]
    order = torch.cat(rows).argsort(stable=True)  # stable: the tokens of a row stay in order
    layers = zip(*(parts[part] for parts in packed), strict=True)
    return tuple(torch.cat(layer)[order] for layer in layers)
