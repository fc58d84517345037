"""Data views on token level: each learner sees its own perturbation of the unlabelled batch.

The first token of a row is always left as it is: it marks the start, and no row may be empty.
Chance comes from a generator on the CPU, whatever the device.
"""

import torch
from torch import Tensor


def token_cutoff(mask: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Hide random tokens through the attention mask (DisCo).

    Args:
        mask: (B, T), 1 on tokens that can be seen.
        share: probability that a token is hidden.
        generator: the source of chance.
    """
    keep = torch.rand(mask.shape, generator=generator) >= share
    keep[:, 0] = True
    return mask * keep.to(mask)  # to: its device and dtype


def span_cutoff(mask: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Hide one contiguous span of each row through the attention mask (DisCo).

    Args:
        mask: (B, T), 1 on tokens that can be seen; real tokens stand first.
        share: length of the span over that of the row, rounded to whole tokens.
        generator: the source of chance.
    """
    lengths = mask.sum(-1).cpu()
    spans = (share * lengths).round().clamp(max=lengths - 1)
    starts = 1 + (torch.rand(len(mask), generator=generator) * (lengths - spans)).floor()
    places = torch.arange(mask.shape[1])
    hidden = (places >= starts[:, None]) & (places < (starts + spans)[:, None])
    return mask * (~hidden).to(mask)


def shuffled_positions(mask: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return positions (B, T) where random tokens of a row have exchanged theirs (DisCo).

    Args:
        mask: (B, T), 1 on real tokens.
        share: probability that a token takes part in its row's exchange.
        generator: the source of chance.
    """
    chosen = (torch.rand(mask.shape, generator=generator) < share) & mask.bool().cpu()
    chosen[:, 0] = False
    order = torch.rand(mask.shape, generator=generator)
    positions = torch.arange(mask.shape[1]).repeat(len(mask), 1)
    for row, moved in enumerate(chosen):
        places = moved.nonzero()[:, 0]
        positions[row, places] = places[order[row, places].argsort()]
    return positions.to(mask.device)


def feature_cutoff(rows: int, width: int, share: float, generator: torch.Generator) -> Tensor:
    """Return a factor (B, 1, H) that sets random features of a row's embeddings to 0 (DisCo).

    Args:
        rows: B.
        width: H.
        share: probability that a feature is cut, for all tokens of the row alike.
        generator: the source of chance.
    """
    return (torch.rand((rows, 1, width), generator=generator) >= share).float()
