"""Heads: from a pooled vector to logits."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from nanonet.models.encoders import Pooling


def pool(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one vector (B, H) per row of hidden states (B, T, H), in 32 bits.

    The mean is over real tokens only, ``attention_mask`` (B, T) being 1 there.
    """
    if pooling == "cls":
        return hidden[:, 0].float()
    mask = attention_mask.to(torch.float32).unsqueeze(-1)
    return (hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def pool_units(hidden: Tensor, attention_mask: Tensor, shares: Tensor) -> Tensor:
    """Return one vector (B, S, H) per unit of hidden states (B, T, H), in 32 bits.

    Args:
        hidden: (B, T, H).
        attention_mask: (B, T); tokens that it hides count only where it hides all of a unit's.
        shares: of each token in each unit's mean, (B, S, T); 0 beyond a row's units.
    """
    seen = shares * attention_mask.to(shares.dtype).unsqueeze(1)
    total = seen.sum(-1, keepdim=True)
    shares = torch.where(total > 0, seen / total.clamp(min=1e-9), shares)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):  # which would round the product to 16 bits
        with torch.autocast(kind, enabled=False):
            return shares @ hidden.float()
    return shares @ hidden.float()


class LinearHead(nn.Module):
    """Logits = scale * (W x + V f + b), x optionally L2-normalised; W, V and b start at zero.

    At the start every class is equally likely, and with normalisation the scale bounds the
    logits, so that few labels cannot drive them to extremes. f holds features that stand beside
    x, where there are any.
    """

    def __init__(
        self, hidden_size: int, classes: int, normalize: bool, scale: float, features: int = 0
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if features:
            self.feature_weights = nn.Parameter(torch.zeros(classes, features))  # V
        self.normalize = normalize
        self.scale = scale

    @property
    def reads_features_alone(self) -> bool:
        """Whether the vectors have no say."""
        return not self.linear.weight.any()

    @torch.no_grad()
    def start_from(
        self, weights: NDArray[np.float64], features: NDArray[np.float64], bias: float
    ) -> None:
        """Set a head of one logit so that it gives w x + v f + b.

        Args:
            weights: w, (H,), of x as `forward` takes it, after normalisation.
            features: v, (F,).
            bias: b.
        """
        self.linear.weight.copy_(torch.from_numpy(weights / self.scale))
        self.feature_weights.copy_(torch.from_numpy(features / self.scale))
        self.linear.bias.fill_(bias / self.scale)

    @torch.no_grad()
    def add_to_logits(self, offsets: Sequence[float]) -> None:
        """Change the bias so that each class's logit is larger by its offset, (C,)."""
        self.linear.bias.add_(torch.tensor(offsets), alpha=1.0 / self.scale)

    def forward(self, pooled: Tensor, features: Tensor | None = None) -> Tensor:
        """Return logits (.., C) of pooled vectors (.., H) and features (.., F)."""
        if self.normalize:
            pooled = F.normalize(pooled, dim=-1)
        if features is None:
            return self.scale * F.linear(pooled, self.linear.weight, self.linear.bias)
        return self.scale * F.linear(pooled, self.linear.weight) + self.score_features(features)

    def score_features(self, features: Tensor) -> Tensor:
        """Return the part of the logits (.., C) that features (.., F) and bias make."""
        # No matrix product: in 8 bits a few large weights would lose too much.
        products = features.unsqueeze(-2) * self.feature_weights
        return self.scale * (products.sum(-1) + self.linear.bias)
