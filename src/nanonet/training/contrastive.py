"""A second space for labels to spread in: a copy of the pretrained encoder, tuned as a whole.

Biases tell classes apart along directions that the pretrained space has; they hardly make texts
crowd by mood that used to crowd by topic. All weights do, from a few labelled texts, each pair of
which is an example (SetFit, arXiv 2209.11055). The copy lends its vectors when labels spread, so
that both spaces have a say, and is thrown away: what is trained and shipped stays as it is.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nanonet.core.config import Config, PhaseConfig
from nanonet.models.backbones import Backbone
from nanonet.models.cohort import pretrained_learner
from nanonet.models.learner import Learner
from nanonet.models.peft import make_trainable
from nanonet.tasks.base import Row
from nanonet.training.device import Hardware, release_memory
from nanonet.training.evaluation import autocast
from nanonet.training.optim import clip_gradients, schedule_factor
from nanonet.training.processes import ALONE, Processes
from nanonet.training.step import make_chunks
from nanonet.training.views import set_dropout

BATCH, RATE, CLIP_NORM, DROPOUT = 16, 5e-5, 1.0, 0.1
_SCHEDULE = PhaseConfig(learners="all", warmup=0.1, schedule="linear")


def contrastive_copy(
    backbone: Backbone,
    rows: Sequence[Row],
    labels: NDArray[np.int64],
    config: Config,
    hardware: Hardware,
    processes: Processes = ALONE,
) -> Learner:
    """Return a copy of the encoder in whose space the texts of a class are near each other.

    Args:
        backbone: the pretrained encoder, as a run holds it (in bf16, where it computes so); its
            embeddings are shared, nothing of it is changed.
        rows: labelled texts.
        labels: their class indexes (n_l,).
        config: its ``propagation.contrastive_steps`` and ``seed`` are read.
        hardware: where to compute.
        processes: each does the same; all take what the main one has found.
    """
    copy = pretrained_learner(backbone)
    encoder = copy.encoder
    make_trainable(encoder, "layers", config.lora)
    encoder.gradient_checkpointing = config.training.gradient_checkpointing
    copy.to(hardware.device)
    set_dropout(copy, DROPOUT)
    torch.manual_seed(config.seed)  # a resumed run comes here with another state of chance
    copy.train()
    trained = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01, fused=True)
    classes = torch.from_numpy(labels).to(hardware.device)
    random, order = np.random.default_rng((config.seed, len(rows))), np.empty(0, dtype=np.int64)
    steps = config.propagation.contrastive_steps
    for step in range(steps):
        if len(order) < BATCH:
            order = np.concatenate([order, random.permutation(len(rows))])
        batch, order = order[:BATCH], order[BATCH:]
        chunks = make_chunks([rows[i] for i in batch], 0.1, hardware.device)
        with autocast(hardware):
            pooled = copy.read(chunks).pooled
        loss = pair_loss(pooled, classes[torch.from_numpy(batch).to(hardware.device)])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(trained, CLIP_NORM)
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule_factor(_SCHEDULE, (step + 0.5) / steps)
        optimizer.step()
        release_memory()
    for parameter in trained:
        if not processes.main:
            parameter.data.zero_()
        processes.add_up(parameter.data)
    return copy.eval()


def pair_loss(pooled: Tensor, labels: Tensor) -> Tensor:
    """Return how far cosines of pairs are from 1 within a class and from 0 between classes.

    The mean squared error (SetFit's loss), pairs of either kind counting alike.

    Args:
        pooled: vectors (n, H).
        labels: class indexes (n,).
    """
    vectors = F.normalize(pooled, dim=-1)
    i, j = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
    same = labels[i] == labels[j]
    # By the product of all: gradients of rows taken many times add up in an order by chance.
    errors = ((vectors @ vectors.T)[i, j] - same.float()) ** 2
    kinds = [errors[kind] for kind in (same, ~same)]
    return torch.stack([kind.mean() if len(kind) else kind.sum() for kind in kinds]).sum()
