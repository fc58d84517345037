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
from numpy.typing import NDArray

from nanonet.core.errors import BundleError
from nanonet.models.learner import FeatureScorer, Learner
from nanonet.tasks.base import FEATURES

PARITY_LIMIT = 1e-4  # largest difference of a logit between torch and onnxruntime
SENTENCE_AXES = {
    "token_type_ids": ("rows", "tokens"),
    "pooling": ("rows", "sentences", "tokens"),
    "features": ("rows", "sentences"),
}
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
    """Write a learner as ONNX: token ids and mask (rows, tokens) -> logits (rows, classes).

    Where units are sentences, there are more inputs, see `sentence_feed`, and the logits are (rows,
    sentences); an encoder that has no say in them is left out.
    """
    feed = {"input_ids": np.ones((2, 16), dtype=np.int64), "attention_mask": np.ones((2, 16), int)}
    feed["attention_mask"][1, 9:] = 0
    if learner.outputs.level == "sentence":
        feed |= sentence_feed(np.random.default_rng(0), feed["attention_mask"])
    dims = {name: torch.export.Dim(name) for name in ("rows", "tokens", "sentences")}
    axes = SENTENCE_AXES | dict.fromkeys(("input_ids", "attention_mask"), ("rows", "tokens"))
    with _quiet():
        program = torch.onnx.export(
            FeatureScorer(learner.head) if learner.is_encoder_idle else learner,
            tuple(torch.from_numpy(array) for array in feed.values()),
            input_names=list(feed),
            output_names=["logits"],
            dynamic_shapes=tuple({i: dims[a] for i, a in enumerate(axes[name])} for name in feed),
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise BundleError("torch.onnx returned no model")
        model = program.model_proto
    _strip(model)
    onnx.save(model, str(path))


def replace_table(path: Path, learner: Learner, name: str) -> None:
    """Give a written model another table of word embeddings, which saves writing it anew.

    A model without the encoder has none. `check_parity` tells whether it is the right one.

    Args:
        path: of the model.
        learner: as written, but for the table.
        name: of the table among its parameters.
    """
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(learner.get_parameter(name).numpy(), name))
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
    feed = {
        "input_ids": rng.integers(0, vocabulary, size=(rows, tokens)),
        "attention_mask": (np.arange(tokens)[None, :] < lengths).astype(np.int64),
    }
    if learner.outputs.level == "sentence":
        feed |= sentence_feed(rng, feed["attention_mask"])
    return feed


def sentence_feed(rng: np.random.Generator, mask: NDArray[np.int64]) -> dict[str, Any]:
    """Return token types, pooling shares and features (see `pad_windows`) of made-up sentences.

    At most four a row; tokens that ``mask`` (rows, tokens) hides belong to none.
    """
    rows, tokens = mask.shape
    sentences = min(4, tokens)
    owner = np.arange(tokens) * sentences // tokens
    shares = (owner == np.arange(sentences)[:, None])[None] * mask[:, None, :]
    shares = shares / np.maximum(shares.sum(-1, keepdims=True), 1)
    features = rng.random((rows, sentences, FEATURES), dtype=np.float32)
    types = np.broadcast_to(owner % 2, mask.shape).copy()
    return {"token_type_ids": types, "pooling": shares.astype(np.float32), "features": features}


def open_session(path: Path) -> Any:
    """Return an onnxruntime session of a model file."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises kinds of its own
        raise BundleError(f"{path} cannot be run: {error}") from None
