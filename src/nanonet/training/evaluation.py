"""Scoring: every row, in order, in evaluation mode."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from nanonet.models.learner import Learner, LearnerOutput
from nanonet.tasks.base import Row, Window, unit_counts, units_of
from nanonet.tasks.tokenization import Ids
from nanonet.training.device import Hardware
from nanonet.training.processes import ALONE, Processes
from nanonet.training.step import make_chunks

# Padded tokens of one forward pass: large matrices, and memory that is used again. Of larger
# blocks, glibc asks the system anew at each layer, which took a tenth of the time.
TOKENS_PER_CHUNK = 1024


def autocast(hardware: Hardware) -> torch.autocast:
    """Return the context in which learners compute."""
    kind = torch.device(hardware.device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=hardware.precision == "bf16")


def predict_logits(
    learner: Learner,
    ids: Sequence[Row],
    hardware: Hardware,
    max_padding: float = 0.1,
    processes: Processes = ALONE,
) -> NDArray[np.float32]:
    """Return the learner's logits (U, C) of the units of n rows, in their order.

    A single logit z is given as (0, z), see `LearnerOutput`. Processes share the work. An encoder
    that has no say is not run.
    """
    if learner.is_encoder_idle:
        return _feature_logits(learner, ids)
    vectors, shape = int(unit_counts(ids).sum()), (learner.questions, learner.classes)
    logits = np.zeros((vectors, *shape), dtype=np.float32)
    for places, output in _read_all(learner, ids, hardware, max_padding, processes):
        logits[places] = output.logits.float().cpu().numpy().reshape(-1, *shape)
    processes.add_up(torch.from_numpy(logits))
    return logits.reshape(-1, learner.classes)


def _feature_logits(learner: Learner, rows: Sequence[Row]) -> NDArray[np.float32]:
    """Return the logits (U, 2) of a head that reads features alone."""
    features = [window.features for window in rows if isinstance(window, Window)]
    head = learner.head
    with torch.inference_mode():
        table = torch.from_numpy(np.concatenate(features)).to(head.linear.weight.device)
        logits = F.pad(head.score_features(table), (1, 0))
    return np.asarray(logits.cpu().numpy())


def embed(
    learner: Learner,
    ids: Sequence[Row],
    hardware: Hardware,
    max_padding: float = 0.1,
    processes: Processes = ALONE,
    normalize: bool = True,
) -> NDArray[np.float32]:
    """Return the pooled vectors (U, H) of the units of n rows, L2-normalised, in order.

    Processes share the work.

    Args:
        learner, ids, hardware, max_padding, processes: as for `predict_logits`.
        normalize: False: as the learner gives them.
    """
    width = learner.encoder.hidden_size
    vectors = np.zeros((int(unit_counts(ids).sum()), width), dtype=np.float32)
    for units, output in _read_all(learner, ids, hardware, max_padding, processes):
        pooled = output.pooled
        vectors[units] = (F.normalize(pooled, dim=-1) if normalize else pooled).cpu().numpy()
    processes.add_up(torch.from_numpy(vectors))
    return vectors


def _read_all(
    learner: Learner,
    ids: Sequence[Row],
    hardware: Hardware,
    max_padding: float,
    processes: Processes,
) -> Iterator[tuple[Ids, LearnerOutput]]:
    """Yield which units a chunk of this process holds and what the learner makes of them."""
    was_training = learner.training
    learner.eval()
    counts = unit_counts(ids)
    with torch.inference_mode(), autocast(hardware):
        chunks = make_chunks(ids, max_padding, hardware.device, TOKENS_PER_CHUNK)
        for chunk in chunks[processes.rank :: processes.count]:
            rows = replace(chunk, rows=torch.arange(len(chunk.rows), device=hardware.device))
            yield units_of(chunk.rows.cpu().numpy(), counts), learner.read([rows])
    learner.train(was_training)
