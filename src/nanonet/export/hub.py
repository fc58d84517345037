"""A run's learner in Hugging Face's format: transformers' encoder, sentence-transformers' modules.

::

    README.md                        the model card
    config.json, model.safetensors   the encoder, merged: ``AutoModel``
    tokenizer.json, tokenizer_config.json
    modules.json                     encoder, pooling, normalisation, head: ``SentenceTransformer``
    sentence_bert_config.json        the first module's settings
    1_Pooling/ 2_Normalize/ 3_Dense/ the other modules; the head's scale is multiplied into it
    nanonet.json                     labels, origin, how it was chosen, how it scored
"""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from nanonet.core.bundle import TOKENIZER
from nanonet.core.errors import BundleError
from nanonet.core.files import new_folder, write_json
from nanonet.export import load_cohort
from nanonet.export.card import model_card
from nanonet.export.graph import PARITY_LIMIT, PARITY_SHAPES, random_feed
from nanonet.export.pretrained import label_maps, write_tokenizer_config
from nanonet.models.backbones import MINILM_HUB_ID, load_special_tokens
from nanonet.models.heads import pool
from nanonet.models.learner import Learner
from nanonet.models.stock import stock_model
from nanonet.training.checkpoint import read_tensors, write_tensors
from nanonet.training.run_folder import RunFolder

FACTS = "nanonet.json"
MADE_BY = ("nanonet", "torch", "transformers", "tokenizers")
# Names that every version of sentence-transformers from 2 on understands.
MODULES = "sentence_transformers.models"


def export_hub(run_path: Path, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a run's selected learner in Hugging Face's format.

    What was written is loaded again and compared with the learner before it stands at ``out``.

    Returns:
        The content of ``nanonet.json``.

    Raises:
        RunError, BackboneError: see `load_cohort`; or a shape that transformers does not know.
        BundleError: ``out`` exists, cannot be written, or computes something else.
    """
    run = RunFolder(run_path)
    summary = run.read_summary()
    config, inputs = run.read_config()
    if config.task != "classification":
        raise BundleError(
            f"run {run_path} is of the task {config.task}: only classifiers are written in Hugging"
            " Face's format; export a bundle"
        )
    check_free(out, overwrite)
    name = str(summary["selected"])
    learner = load_cohort(run)[name].merged()
    facts: dict[str, Any] = {
        "labels": run.read_json("labels.json"),
        "max_length": config.data.max_length,
        "pooling": learner.pooling,
        "normalize": learner.head.normalize,
        "learner": {
            "name": name,
            "layers": list(learner.layer_map),
            "backbone": hub_id(config.backbone.name),
            "weights_sha256": summary["weights_sha256"],
        },
        "parameters": learner.total_count(),
        "versions": {package: metadata.version(package) for package in MADE_BY},
        "data": {key: _public(value) for key, value in inputs.items()},
        "selection": summary["selection"],
        "calibration": summary.get("calibration"),
        "priors": summary.get("priors"),
        "evaluations": [_public(row) for row in run.describe_evaluations()],
    }
    try:
        with new_folder(out) as folder:
            write_encoder(learner, facts["labels"]["names"], folder)
            tokens = load_special_tokens(config.backbone.name)
            (folder / TOKENIZER).write_text(run.read_tokenizer(), encoding="utf-8")
            write_tokenizer_config(config.data.max_length, tokens, folder)
            write_modules(learner, config.data.max_length, folder)
            facts["largest_difference_from_the_run"] = _check_parity(learner, folder)
            write_json(folder / FACTS, facts)
            (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror or error}") from None
    return facts


def _public(value: Any) -> Any:
    """Return what is known of a data file without the folders of the machine that it lay on."""
    if not isinstance(value, dict) or str(value.get("source", "hub:")).startswith("hub:"):
        return value
    return value | {"source": Path(value["source"]).name}


def hub_id(backbone: str) -> str | None:
    """Return a backbone's id on the Hugging Face hub; None for a folder."""
    if backbone == "minilm":
        return MINILM_HUB_ID
    is_folder = backbone.startswith((".", "/", "~")) or Path(backbone).expanduser().exists()
    return None if is_folder or backbone.count("/") > 1 else backbone


def write_encoder(learner: Learner, names: list[str], folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` of a merged learner's encoder."""
    model = stock_model(learner.encoder)
    model.config.update(label_maps(names))
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes private files


def write_modules(learner: Learner, max_length: int, folder: Path) -> None:
    """Write pooling, normalisation and head as modules of sentence-transformers.

    Together they give logits: the head's scale is multiplied into its weights.
    """
    width = learner.encoder.hidden_size
    weight = (learner.head.scale * learner.head.linear.weight).detach()
    bias = (learner.head.scale * learner.head.linear.bias).detach()
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": learner.pooling == "cls",
        "pooling_mode_mean_tokens": learner.pooling == "mean",
    }
    head = {
        "in_features": width,
        "out_features": len(bias),
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    kinds: dict[str, dict[str, Any]] = {"Pooling": pooling}
    if learner.head.normalize:
        kinds["Normalize"] = {}
    kinds["Dense"] = head
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{MODULES}.Transformer"}]
    for i, (kind, settings) in enumerate(kinds.items(), start=1):
        path = f"{i}_{kind}"
        (folder / path).mkdir()
        write_json(folder / path / "config.json", settings)
        modules.append({"idx": i, "name": str(i), "path": path, "type": f"{MODULES}.{kind}"})
    write_tensors(
        folder / path / "model.safetensors", {"linear.weight": weight, "linear.bias": bias}
    )
    write_json(folder / "modules.json", modules)
    settings = {"max_seq_length": max_length, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", settings)


def _check_parity(learner: Learner, folder: Path) -> float:
    """Return the largest difference of a logit between the files and the learner.

    Raises:
        BundleError: it exceeds `PARITY_LIMIT`.
    """
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    head = read_tensors(next(folder.glob("*_Dense")) / "model.safetensors")
    rng = np.random.default_rng(0)
    differences = []
    for rows, tokens in PARITY_SHAPES:
        feed = random_feed(rng, rows, tokens, learner)
        ids, mask = (torch.from_numpy(array) for array in feed.values())
        with torch.inference_mode():
            pooled = pool(model(ids, mask).last_hidden_state, mask, learner.pooling)
            if learner.head.normalize:
                pooled = F.normalize(pooled, dim=-1)
            logits = F.linear(pooled, head["linear.weight"], head["linear.bias"])
            differences.append((logits - learner(ids, mask)).abs().max().item())
    worst = float(np.max(differences))
    if not worst <= PARITY_LIMIT:
        raise BundleError(
            f"the model in Hugging Face's format differs from the run's by {worst:.1e} (at most"
            f" {PARITY_LIMIT:.0e} is accepted); nothing was written. Please report this"
        )
    return worst


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse to write over anything but, if asked to, what `export_hub` has written."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not _is_ours(out):
        raise BundleError(f"{out} exists and was not written by --format hf: choose another --out")
    if not overwrite:
        raise BundleError(f"{out} exists: choose another --out, or give --overwrite")


def _is_ours(folder: Path) -> bool:
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and {"labels", "learner", "data"} <= facts.keys()
