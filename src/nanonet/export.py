"""Layer 6: from a run folder to a bundle."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nanonet.core.bundle import FORMAT, MODEL, SEEN, TOKENIZER, Manifest, is_bundle
from nanonet.core.errors import BundleError, RunError
from nanonet.core.files import new_folder, sha256_file
from nanonet.models.backbones import load_backbone
from nanonet.models.cohort import Cohort, Learner, build_cohort
from nanonet.training.checkpoint import read_tensors
from nanonet.training.run_folder import RunFolder

Quantization = Literal["none", "int8"]
PARITY_LIMIT = 1e-4  # largest difference of a logit between torch and onnxruntime
PARITY_SHAPES = ((1, 3), (1, 48), (7, 1), (7, 200), (2, 512))  # (rows, tokens)
MADE_BY = ("nanonet", "torch", "onnx", "onnxruntime", "transformers", "tokenizers")


def load_cohort(run: RunFolder) -> Cohort:
    """Return a finished run's learners, in 32 bits, in evaluation mode.

    Raises:
        RunError: the run is not finished, or its backbone has changed since.
        BackboneError: its backbone is gone.
    """
    summary = run.read_summary()
    config, inputs = run.read_config()
    backbone = load_backbone(config.backbone.name, config.backbone.pooling)
    if backbone.fingerprint != inputs.get("backbone_fingerprint"):
        raise RunError(
            f"run {run.path} was trained on another '{config.backbone.name}' than is there now:"
            " bring the original back, or train again"
        )
    cohort = build_cohort(backbone, config, int(summary["classes"]), run.read_warmup())
    try:
        cohort.load_own_tensors(read_tensors(run.learners))
    except (OSError, ValueError) as error:
        raise RunError(f"{run.learners} cannot be used: {error}") from None
    return cohort.eval()


def export(
    run_path: Path, out: Path, *, quantize: Quantization = "none", overwrite: bool = False
) -> Manifest:
    """Write the bundle of a run's selected learner.

    The ONNX model is checked against torch at several shapes before anything stands at ``out``.
    With ``quantize="int8"`` the weights are then held in 8 bits, which changes outputs; the
    manifest says by how much.

    Raises:
        RunError, BackboneError: see `load_cohort`.
        BundleError: ``out`` exists, cannot be written, or the model does not match torch's.
    """
    run = RunFolder(run_path)
    summary = run.read_summary()
    _check_free(out, overwrite)
    cohort = load_cohort(run)
    name = str(summary["selected"])
    config, inputs = run.read_config()
    learner = cohort[name].merged()
    try:
        with new_folder(out) as folder:
            onnx_path = folder / MODEL
            write_onnx(learner, onnx_path)
            metrics: dict[str, Any] = {
                "selection": summary["selection"],
                "largest_difference_from_torch": check_parity(learner, onnx_path),
                "evaluations": run.read_evaluations(),
            }
            if quantize == "int8":
                metrics["largest_difference_of_int8"] = quantize_int8(learner, onnx_path)
            (folder / TOKENIZER).write_text(run.read_tokenizer(), encoding="utf-8")
            (folder / SEEN).write_bytes(run.read_seen("labeled").tobytes())
            manifest = Manifest(
                format=FORMAT,
                task=config.task,
                labels=run.read_json("labels.json"),
                max_length=config.data.max_length,
                quantization=quantize,
                files={f: sha256_file(folder / f) for f in (MODEL, TOKENIZER, SEEN)},
                learner={
                    "name": name,
                    "layers": list(learner.layer_map),
                    "backbone": config.backbone.name,
                    "weights_sha256": summary["weights_sha256"],
                },
                parameters={
                    "trainable": cohort[name].trainable_count(),
                    "total": learner.total_count(),
                },
                versions={package: metadata.version(package) for package in MADE_BY},
                data=inputs,
                metrics=metrics,
            )
            manifest.write(folder)
    except OSError as error:
        raise BundleError(f"bundle {out} cannot be written: {error.strerror or error}") from None
    return manifest


def _check_free(out: Path, overwrite: bool) -> None:
    """Refuse to write over anything but, if asked to, a bundle."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not is_bundle(out):
        raise BundleError(f"{out} exists and is not a bundle: choose another --out")
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists: choose another --out, or give --overwrite")


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
        program.save(path)


def check_parity(learner: Learner, path: Path) -> float:
    """Return the largest difference of a logit from torch's over several shapes.

    Raises:
        BundleError: it exceeds `PARITY_LIMIT`.
    """
    differences = []
    rng = np.random.default_rng(0)
    session = _session(path)
    for rows, tokens in PARITY_SHAPES:
        feed = _random_feed(rng, rows, tokens, learner)
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


def quantize_int8(learner: Learner, path: Path) -> float:
    """Replace a learner's ONNX model by its dynamically quantized form.

    Weights are held in 8 bits; activations are quantized as they come.

    Returns:
        The largest difference of a logit on random input.
    """
    from onnxruntime.quantization import quantize_dynamic

    rng = np.random.default_rng(0)
    before = _session(path)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        small = Path(folder) / MODEL
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # it recommends a pre-processing that dynamic int8 ignores
        try:
            quantize_dynamic(path, small, per_channel=True)
        finally:
            root.setLevel(level)
        path.write_bytes(small.read_bytes())
    after = _session(path)
    feed = _random_feed(rng, 7, 48, learner)
    return float(np.abs(after.run(None, feed)[0] - before.run(None, feed)[0]).max())


def _random_feed(
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


def _session(path: Path) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises kinds of its own
        raise BundleError(f"{path} cannot be run: {error}") from None
