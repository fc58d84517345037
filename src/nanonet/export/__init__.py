"""Layer 6: from a run folder to a bundle."""

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from nanonet.core.bundle import (
    CONFIG,
    FORMAT,
    MODEL,
    SEEN,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Calibration,
    Manifest,
    is_bundle,
)
from nanonet.core.config import Config
from nanonet.core.errors import BundleError, RunError
from nanonet.core.files import new_folder, sha256_file
from nanonet.core.strict import build, to_dict
from nanonet.data.checks import fingerprint
from nanonet.data.readers import TextTable
from nanonet.export.abstention import choose_on, labelled_texts
from nanonet.export.model import Compression, write_model
from nanonet.export.pretrained import write_config, write_tokenizer_config
from nanonet.export.samples import Sample, draw_sample, run_sample
from nanonet.models.backbones import load_backbone, load_special_tokens
from nanonet.models.cohort import Cohort, build_cohort
from nanonet.models.learner import Learner
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training.checkpoint import read_tensors
from nanonet.training.run_folder import RunFolder

PLAIN = Compression()
__all__ = ["Compression", "export", "load_cohort"]

MADE_BY = ("nanonet", "torch", "onnx", "onnxruntime", "transformers", "tokenizers")


def load_cohort(run: RunFolder) -> Cohort:
    """Return a finished run's learners, in 32 bits, in evaluation mode.

    The selected one is calibrated: its head's scale is divided by the run's temperature, and its
    bias fitted to the shares of the classes, so that whatever is made of it gives the same
    probabilities.

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
    head = cohort[str(summary["selected"])].head
    head.scale /= run.temperature
    if run.priors is not None:
        head.add_to_logits(run.priors.offsets)
    return cohort.eval()


def export(
    run_path: Path,
    out: Path,
    *,
    compression: Compression = PLAIN,
    data: TextTable | None = None,
    target_precision: float | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write the bundle of a run's selected learner.

    The ONNX model is checked against torch at several shapes before anything stands at ``out``.
    What a compression costs is measured step by step and told in the manifest.

    Args:
        run_path: a finished run.
        out: the folder to write.
        compression: how much smaller the model is to be.
        data: texts (documents for a summarizer) to measure that on, with or without labels; None:
            those of the run, where their file still is what it was.
        target_precision: share of labels that is to be right: a threshold is chosen for it, on
            ``data`` with labels, or on the run's validation texts (see `export.abstention`).
        overwrite: whether a bundle that stands at ``out`` may be replaced.

    Raises:
        RunError, BackboneError: see `load_cohort`.
        BundleError: ``out`` exists, cannot be written, or see `write_model` and
            `choose_threshold`.
        DataError: a label in ``data`` that training never saw.
    """
    run = RunFolder(run_path)
    summary = run.read_summary()
    _check_free(out, overwrite)
    cohort = load_cohort(run)
    config, inputs = run.read_config()
    learner = cohort[str(summary["selected"])].merged()
    labelled = target_precision and labelled_texts(run, config, inputs, data)
    sample = None if compression.is_none else _sample(run, inputs, data)
    try:
        with new_folder(out) as folder:
            tokenizer, metrics = write_model(
                run, learner, folder, config.data.max_length, compression, sample
            )
            files = _write_beside(run, config, learner, tokenizer, folder)
            manifest = _manifest(run, learner, compression, metrics)
            if target_precision and labelled:
                made = TextTokenizer(tokenizer, config.data.max_length)
                chosen = choose_on(labelled, run, folder, made, target_precision)
                manifest = replace(manifest, abstention=chosen)
            manifest = replace(manifest, files={f: sha256_file(folder / f) for f in files})
            manifest.write(folder)
    except OSError as error:
        raise BundleError(f"bundle {out} cannot be written: {error.strerror or error}") from None
    return manifest


def _manifest(
    run: RunFolder, learner: Learner, compression: Compression, metrics: dict[str, Any]
) -> Manifest:
    """Return what a bundle says of itself, its files' checksums left out."""
    summary = run.read_summary()
    config, inputs = run.read_config()
    name = summary["selected"]
    return Manifest(
        format=FORMAT,
        task=config.task,
        labels=run.read_json("labels.json"),
        max_length=config.data.max_length,
        quantization=compression.quantize,
        files={},
        learner={
            "name": name,
            "layers": list(learner.layer_map),
            "backbone": config.backbone.name,
            "weights_sha256": summary["weights_sha256"],
        },
        parameters={
            "trainable": summary["trainable_parameters"][name],
            "total": learner.total_count(),
        },
        versions={package: metadata.version(package) for package in MADE_BY},
        data=inputs,
        metrics={
            "selection": summary["selection"],
            "evaluations": run.describe_evaluations(),
            "token_lengths": summary.get("token_lengths", []),
            **metrics,
        },
        settings=to_dict(config.summarization) if config.task == "summarization" else {},
        calibration=build(Calibration, fitted) if (fitted := summary.get("calibration")) else None,
        priors=run.priors,
        thresholds=run.thresholds,
    )


def _sample(run: RunFolder, inputs: dict[str, Any], data: TextTable | None) -> Sample | None:
    if data is None:
        return run_sample(run)
    known = [inputs.get(name, {}).get("fingerprint") for name in ("labeled", "unlabeled")]
    return draw_sample(run, data, seen=fingerprint(data) in known)


def _write_beside(
    run: RunFolder, config: Config, learner: Learner, tokenizer: str, folder: Path
) -> tuple[str, ...]:
    """Write what a bundle holds beside the model, and return the names of all its files."""
    (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    (folder / SEEN).write_bytes(run.read_seen("labeled").tobytes())
    if config.task != "classification":
        return MODEL, TOKENIZER, SEEN
    names = run.read_json("labels.json")["names"]
    write_config(str(learner.encoder.config.model_type), names, folder)
    special = load_special_tokens(config.backbone.name)
    write_tokenizer_config(config.data.max_length, special, folder)
    return MODEL, TOKENIZER, SEEN, CONFIG, TOKENIZER_CONFIG


def _check_free(out: Path, overwrite: bool) -> None:
    """Refuse to write over anything but, if asked to, a bundle."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not is_bundle(out):
        raise BundleError(f"{out} exists and is not a bundle: choose another --out")
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists: choose another --out, or give --overwrite")
