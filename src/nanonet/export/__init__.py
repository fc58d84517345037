"""Layer 6: from a run folder to a bundle."""

from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from nanonet.core.bundle import (
    CONFIG,
    FORMAT,
    MODEL,
    SEEN,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Manifest,
    is_bundle,
)
from nanonet.core.errors import BundleError, RunError
from nanonet.core.files import new_folder, sha256_file
from nanonet.export.graph import check_parity, quantize_int8, write_onnx
from nanonet.export.pretrained import write_config, write_tokenizer_config
from nanonet.models.backbones import load_backbone, load_special_tokens
from nanonet.models.cohort import Cohort, build_cohort
from nanonet.training.checkpoint import read_tensors
from nanonet.training.run_folder import RunFolder

Quantization = Literal["none", "int8"]
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
            labels = run.read_json("labels.json")
            write_config(str(learner.encoder.config.model_type), labels["names"], folder)
            tokens = load_special_tokens(config.backbone.name)
            write_tokenizer_config(config.data.max_length, tokens, folder)
            names = (MODEL, TOKENIZER, SEEN, CONFIG, TOKENIZER_CONFIG)
            manifest = Manifest(
                format=FORMAT,
                task=config.task,
                labels=labels,
                max_length=config.data.max_length,
                quantization=quantize,
                files={f: sha256_file(folder / f) for f in names},
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
