"""Plain attention that can be watched: for objectives that compare attention maps.

Hugging Face hides the scores before the softmax; an attention function of our own, registered
with it, computes the same and notes them down while `recorded_attention` is active.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

WATCHED = "nanonet_watched"  # our attention function's name in transformers
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


def register_watched_attention() -> None:
    """Make `watched_attention` known to transformers as `WATCHED`."""
    from transformers import AttentionInterface

    AttentionInterface.register(WATCHED, watched_attention)
