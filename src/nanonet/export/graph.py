"""A learner as an ONNX model: written, checked against torch, quantized."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from nanonet.core.errors import BundleError
from nanonet.models.cohort import Learner

PARITY_LIMIT = 1e-4  # largest difference of a logit between torch and onnxruntime
PARITY_SHAPES = ((1, 3), (1, 48), (7, 1), (7, 200), (2, 512))  # (rows, tokens)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notices: they speak of packages that are not used."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def write_onnx(learner: Learner, path: Path) -> None:
    """Write a learner as ONNX: token ids and mask (rows, tokens) -> logits (rows, classes)."""
    ids = torch.ones((2, 16), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    shape = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    with _quiet():
        program = torch.onnx.export(
            learner,
            (ids, mask),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(shape, shape),
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise BundleError("torch.onnx returned no model")
        model = program.model_proto
    _strip(model)
    onnx.save(model, str(path))


def _strip(model: Any) -> None:
    """Remove what no one runs: shapes in between, and notes that name the exporter's files."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]


def check_parity(learner: Learner, path: Path) -> float:
    """Return the largest difference of a logit from torch's over several shapes.

    Raises:
        BundleError: it exceeds `PARITY_LIMIT`.
    """
    differences = []
    rng = np.random.default_rng(0)
    session = open_session(path)
    for rows, tokens in PARITY_SHAPES:
        feed = random_feed(rng, rows, tokens, learner)
        with torch.inference_mode():
            expected = learner(*(torch.from_numpy(a) for a in feed.values())).numpy()
        differences.append(np.abs(session.run(None, feed)[0] - expected).max())
    worst = float(np.max(differences))  # unlike Python's max, it does not lose a NaN
    if not worst <= PARITY_LIMIT:
        raise BundleError(
            f"the ONNX model differs from torch's by {worst:.1e} (at most {PARITY_LIMIT:.0e} is"
            " accepted); nothing was written. Please report this with the versions you use"
        )
    return worst


def random_feed(
    rng: np.random.Generator, rows: int, tokens: int, learner: Learner
) -> dict[str, Any]:
    """Return random ids and masks of random row lengths, at least one token each.

    There are no more tokens than the learner has positions for.
    """
    vocabulary = int(learner.encoder.config.vocab_size)
    tokens = min(tokens, learner.encoder.max_length)
    lengths = rng.integers(1, tokens + 1, size=(rows, 1))
    return {
        "input_ids": rng.integers(0, vocabulary, size=(rows, tokens)),
        "attention_mask": (np.arange(tokens)[None, :] < lengths).astype(np.int64),
    }


def open_session(path: Path) -> Any:
    """Return an onnxruntime session of a model file."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises kinds of its own
        raise BundleError(f"{path} cannot be run: {error}") from None
