"""Scoring: every row, in order, in evaluation mode."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from nanonet.models.cohort import Learner
from nanonet.tasks.tokenization import Ids
from nanonet.training.device import Hardware
from nanonet.training.step import make_chunks

TOKENS_PER_CHUNK = 4096  # padded tokens of one forward pass: enough to keep matrices large


def autocast(hardware: Hardware) -> torch.autocast:
    """Return the context in which learners compute."""
    kind = torch.device(hardware.device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=hardware.precision == "bf16")


def predict_logits(
    learner: Learner, ids: Sequence[Ids], hardware: Hardware, max_padding: float = 0.1
) -> NDArray[np.float32]:
    """Return the learner's logits (n, C) of n encoded texts, in their order."""
    was_training = learner.training
    learner.eval()
    classes = learner.head.linear.out_features
    logits = np.empty((len(ids), classes), dtype=np.float32)
    with torch.inference_mode(), autocast(hardware):
        for chunk in make_chunks(list(ids), max_padding, hardware.device, TOKENS_PER_CHUNK):
            out = learner(chunk.input_ids, chunk.attention_mask)
            logits[chunk.rows.cpu().numpy()] = out.float().cpu().numpy()
    learner.train(was_training)
    return logits


def embed(
    learner: Learner, ids: Sequence[Ids], hardware: Hardware, max_padding: float = 0.1
) -> NDArray[np.float32]:
    """Return the learner's pooled vectors (n, H) of n encoded texts, L2-normalised, in order."""
    was_training = learner.training
    learner.eval()
    vectors = np.empty((len(ids), learner.encoder.hidden_size), dtype=np.float32)
    with torch.inference_mode(), autocast(hardware):
        for chunk in make_chunks(list(ids), max_padding, hardware.device, TOKENS_PER_CHUNK):
            rows = replace(chunk, rows=torch.arange(len(chunk.rows), device=hardware.device))
            pooled = torch.nn.functional.normalize(learner.read([rows]).pooled, dim=-1)
            vectors[chunk.rows.cpu().numpy()] = pooled.cpu().numpy()
    learner.train(was_training)
    return vectors
