"""Data views: each student sees its own perturbation of the unlabelled batch."""

import torch
from torch import Tensor


def token_cutoff(mask: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Hide a random share of the real tokens through the attention mask (DisCo).

    The first token of a row always stays, so that no row is left without any.

    Args:
        mask: (B, T), 1 on real tokens.
        share: probability that a token is hidden.
        generator: the source of chance, on the CPU whatever the device.
    """
    keep = torch.rand(mask.shape, generator=generator) >= share
    keep[:, 0] = True
    return mask * keep.to(mask)  # to: its device and dtype
