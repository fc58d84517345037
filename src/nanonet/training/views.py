"""Data views: what a learner that trains sees of the chunks of a step.

Labelled rows are always seen as they are. Chance depends on the seed, the step and the learner, so
that a resumed run sees what a run that was never stopped would have seen.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanonet.core.config import ViewConfig
from nanonet.data.augment import feature_cutoff, shuffled_positions, span_cutoff, token_cutoff
from nanonet.models.learner import Chunk, ChunkView, Learner

START_NOISE = 1e-5  # PS-NET's standard deviation of the noise before the first inner step
SMALL = 1e-6  # PS-NET's addition to the norm of the noise


def is_plain(view: ViewConfig) -> bool:
    """Return whether a view leaves the text as it is (dropout apart)."""
    return not any(
        (view.token_cutoff, view.span_cutoff, view.feature_cutoff, view.shuffle, view.adversarial)
    )


def view_generator(seed: int, step: int, learner: int) -> torch.Generator:
    """Return the source of chance of one learner's views in one step."""
    words = np.random.SeedSequence((seed, step, learner))
    return torch.Generator().manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))


def make_views(
    view: ViewConfig,
    learner: Learner,
    chunks: list[Chunk],
    first: int,
    progress: float,
    generator: torch.Generator,
    places: list[Tensor] | None = None,
) -> list[ChunkView]:
    """Return how a learner sees each chunk.

    Args:
        view: its settings.
        learner: adversarial noise is made against it.
        chunks: the rows of a step.
        first: rows before it are labelled and stay as they are.
        progress: t/N; the inner steps of adversarial noise are floor(``view.adversarial`` t/N)
            (PS-NET's growing number).
        generator: the source of chance.
        places: the rows of each chunk to return the view of; None: all. Chance is drawn for all
            rows, so that no view depends on how rows are shared out; chunks without such rows are
            left out.
    """
    views = []
    for i, chunk in enumerate(chunks):
        own = None if places is None else places[i]
        changed = (chunk.rows >= first)[:, None]
        seen, noise = _perturb(view, learner, chunk, changed, generator), None
        if view.adversarial:
            steps = math.floor(view.adversarial * progress)
            rate = view.adversarial_rate
            noise = adversarial_noise(learner, chunk, seen, steps, rate, generator, own)
        if own is not None:
            if len(own) == 0:
                continue
            seen, changed = seen.take(own), changed[own]
        if noise is not None:
            seen = replace(seen, noise=torch.where(changed[..., None], noise, 0))
        views.append(seen)
    return views


def _perturb(
    view: ViewConfig,
    learner: Learner,
    chunk: Chunk,
    changed: Tensor,
    generator: torch.Generator,
) -> ChunkView:
    """Return the view without noise; ``changed`` (b, 1) marks the rows that may change."""
    mask, positions, features = chunk.attention_mask, None, None
    if view.span_cutoff:
        mask = span_cutoff(mask, view.span_cutoff, generator)
    if view.token_cutoff:
        mask = token_cutoff(mask, view.token_cutoff, generator)
    if view.shuffle:
        shuffled = shuffled_positions(chunk.attention_mask, view.shuffle, generator)
        in_order = torch.arange(mask.shape[1], device=mask.device)
        positions = torch.where(changed, shuffled, in_order)
    if view.feature_cutoff:
        width = learner.encoder.hidden_size
        factor = feature_cutoff(len(mask), width, view.feature_cutoff, generator).to(mask.device)
        features = torch.where(changed[..., None], factor, 1.0)
    return ChunkView(torch.where(changed, mask, chunk.attention_mask), positions, features)


def adversarial_noise(
    learner: Learner,
    chunk: Chunk,
    view: ChunkView,
    steps: int,
    rate: float,
    generator: torch.Generator,
    own: Tensor | None = None,
) -> Tensor:
    """Return noise (b, T, H) that moves the learner's logits (PS-NET's virtual adversary).

    The noise d starts at 1e-5 N(0, 1). Each inner step takes the gradient g of the squared
    differences between the logits with noise and those without, summed over units and classes as in
    PS-NET's code, and sets d to (d + rate g) / (its norm per token + 1e-6). As it is a sum, no
    row's noise depends on the others. With ``own``, only for these rows of the chunk.
    """
    shape = (*chunk.input_ids.shape, learner.encoder.hidden_size)
    noise = (START_NOISE * torch.randn(shape, generator=generator)).to(chunk.input_ids.device)
    if own is not None:
        chunk, view, noise = chunk.take(own), view.take(own), noise[own]
    if len(noise) == 0:
        return noise
    with torch.no_grad():
        embedded = learner.embed(chunk, view)
        clean = _logits(learner, embedded, chunk, view)
    for _ in range(steps):
        noise.requires_grad_()
        logits = _logits(learner, embedded + noise.to(embedded.dtype), chunk, view)
        loss = F.mse_loss(logits, clean, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, noise)
        moved = noise.detach() + rate * gradient
        noise = moved / (moved.norm(dim=-1, keepdim=True) + SMALL)
    return noise


def _logits(learner: Learner, embedded: Tensor, chunk: Chunk, view: ChunkView) -> Tensor:
    """Return the logits (U, C) of a chunk's units."""
    pooled = learner.run(embedded, chunk, view)[1]
    return learner.classify(pooled, None if chunk.units is None else chunk.units.packed_features)


def set_dropout(module: nn.Module, share: float) -> None:
    """Set the dropout of a module and all within it."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = share
        if isinstance(getattr(part, "attention_dropout", None), float):  # ModernBERT
            setattr(part, "attention_dropout", share)  # noqa: B010  (mypy: modules hold tensors)
