"""Attention functions of our own, registered with Hugging Face's models.

`watched_attention` serves objectives that compare attention maps: Hugging Face hides the scores
before the softmax; it computes the same and notes them down while `recorded_attention` is active.

`packed_attention` lets the rest of a layer run over the real tokens of many chunks at once: only
attention needs to know which tokens form a row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

WATCHED = "nanonet_watched"  # our attention functions' names in transformers
PACKED = "nanonet_packed"
FUSED_FROM = 16  # tokens of a row: shorter ones take twice as long fused, in bf16
AttentionKind = Literal["attention_scores", "attention_probabilities"]
Record = dict[AttentionKind, list[Tensor]]

_record: ContextVar[Record | None] = ContextVar("attention record", default=None)


@contextmanager
def recorded_attention(kinds: frozenset[AttentionKind]) -> Iterator[Record]:
    """Collect, per layer that runs, attention maps (B, heads, T, T) of these kinds.

    Scores are those before mask and softmax (PS-NET's vendored BERT), probabilities those after
    (what Hugging Face returns).
    """
    record: Record = {kind: [] for kind in kinds}
    token = _record.set(record if kinds else None)
    try:
        yield record
    finally:
        _record.reset(token)


def watched_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **unused: Any,  # transformers passes more than plain attention needs
) -> tuple[Tensor, Tensor]:
    """Return the context (B, T, heads, H/heads) and probabilities (B, heads, T, T)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(2, 3)) * scale
    masked = scores if attention_mask is None else scores + attention_mask
    probabilities = F.softmax(masked, dim=-1, dtype=torch.float32).to(query.dtype)
    if (record := _record.get()) is not None:
        if "attention_scores" in record:
            record["attention_scores"].append(scores)
        if "attention_probabilities" in record:
            record["attention_probabilities"].append(probabilities)
    dropped = F.dropout(probabilities, p=dropout, training=module.training)
    return (dropped @ value).transpose(1, 2).contiguous(), probabilities


@dataclass(frozen=True)
class Packing:
    """How the real tokens of chunks lie one after another, (N, ..) in all.

    Attributes:
        places: of each chunk's real tokens among its padded ones, (n,) each, increasing.
        shapes: rows and padded length (b, T) of each chunk.
        masks: of each chunk, what is added to attention scores, (b, 1, 1, T).
    """

    places: list[Tensor]
    shapes: list[tuple[int, int]]
    masks: list[Tensor]

    @staticmethod
    def of(real: Sequence[Tensor], masks: list[Tensor]) -> "Packing":
        """Return the packing of chunks whose real tokens are marked by 1 in ``real``, (b, T)."""
        places = [mask.flatten().nonzero().squeeze(-1) for mask in real]
        return Packing(places, [(len(mask), mask.shape[1]) for mask in real], masks)

    def pack(self, chunks: Sequence[Tensor]) -> Tensor:
        """Return the values (N, ..) of the real tokens, given those of chunks (b, T, ..)."""
        flat = zip(chunks, self.places, strict=True)
        return torch.cat([_take(values.flatten(0, 1), places) for values, places in flat])

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Return the values (b, T, ..) of each chunk, 0 at padding, given those of `pack`."""
        parts = torch.split(packed, [len(places) for places in self.places])
        return [
            _put(part, places, rows * length).view(rows, length, *part.shape[1:])
            for part, places, (rows, length) in zip(parts, self.places, self.shapes, strict=True)
        ]


class _Take(torch.autograd.Function):
    """Values at distinct places; its gradient needs no sum, unlike that of indexing."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(values)
        return values.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        whole = gradient.new_zeros(ctx.size, *gradient.shape[1:])
        return whole.index_copy_(0, places, gradient), None


class _Put(torch.autograd.Function):
    """Values put at distinct places among zeros."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return values.new_zeros(size, *values.shape[1:]).index_copy_(0, places, values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None


def _take(values: Tensor, places: Tensor) -> Tensor:
    """Return values (n, ..) at places (n,) of values (m, ..)."""
    if len(places) == len(values):
        return values  # nothing is padded
    return _Take.apply(values, places)  # type: ignore[no-any-return,no-untyped-call]


def _put(values: Tensor, places: Tensor, size: int) -> Tensor:
    """Return (size, ..) with values (n, ..) at places (n,) and 0 elsewhere."""
    if len(places) == size:
        return values
    return _Put.apply(values, places, size)  # type: ignore[no-any-return,no-untyped-call]


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **unused: Any,  # transformers passes more than plain attention needs
) -> tuple[Tensor, None]:
    """Return the context (B, T, heads, H/heads); with ``packing``, (1, N, heads, H/heads).

    Chunk by chunk, what Hugging Face's plain ("eager") attention computes.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rate = dropout if module.training else 0.0
    if packing is None:
        return _attend(query, key, value, attention_mask, scale, rate).transpose(1, 2), None
    queries, keys, values = (packing.unpack(x.transpose(1, 2)[0]) for x in (query, key, value))
    contexts = [
        _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, scale, rate)
        for q, k, v, mask in zip(queries, keys, values, packing.masks, strict=True)
    ]
    contexts = [context.transpose(1, 2) for context in contexts]
    return packing.pack(contexts)[None], None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """Return the context (B, heads, T, H/heads).

    By PyTorch's fused attention, but in bf16 not for a backward pass, which is several times slower
    on CPUs, nor for the shortest rows: there, by matrices. Gradients of gradients are not to be
    had.

    Args:
        query, key, value: (B, heads, T, H/heads).
        mask: added to scores, a float (B, 1, 1 or T, T).
        scale: of the scores.
        dropout: of the probabilities.
    """
    kind = query.dtype
    if mask is not None:
        mask = mask.clamp(min=torch.finfo(kind).min).to(kind)
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if kind != torch.bfloat16 or not (learns or query.shape[2] < FUSED_FROM):
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)
    queries, keys, values = (x.flatten(0, 1) for x in (query, key, value))  # one matrix per head
    added = query.new_zeros(1, 1, 1)
    if mask is not None:
        added = mask.expand(*query.shape[:2], -1, -1).flatten(0, 1)
    scores = torch.baddbmm(added, queries, keys.transpose(1, 2), alpha=scale)
    probabilities = F.softmax(scores, dim=-1)  # computed in 32 bits, though it reads and gives bf16
    dropped = F.dropout(probabilities, p=dropout, training=dropout > 0.0)
    return (dropped @ values).view_as(query)


def register_attention() -> None:
    """Make `watched_attention` and `packed_attention` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(WATCHED, watched_attention)
    AttentionInterface.register(PACKED, packed_attention)
