"""Losses as pure functions: tensors in, one number out. No model, no configuration."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

LogitsDistance = Literal["kl", "mse"]


def logits_distance(
    logits: Tensor, target: Tensor, kind: LogitsDistance, temperature: float
) -> Tensor:
    """Return the distance of logits (R, C) from target logits (R, C), a mean over rows.

    ``mse`` is the mean over all elements (PS-NET); ``kl`` is KL(target || logits) at a
    temperature, times its square, so that gradients keep their size (Hinton et al. 2015).
    """
    if kind == "mse":
        return F.mse_loss(logits, target)
    log_p = F.log_softmax(logits / temperature, dim=-1)
    log_q = F.log_softmax(target / temperature, dim=-1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of logits (R, C) with target probabilities (R, C), a row mean."""
    return -(target * F.log_softmax(logits, dim=-1)).sum(-1).mean()


def cosine_distance(vectors: Tensor, target: Tensor) -> Tensor:
    """Return 1 - cosine similarity of vectors (R, H) and targets (R, H), a row mean."""
    return (1.0 - F.cosine_similarity(vectors, target, dim=-1)).mean()
