"""The small JSON files by which Hugging Face's tools know labels and tokenizer of a model."""

from pathlib import Path
from typing import Any

from nanonet.core.bundle import CONFIG, TOKENIZER_CONFIG
from nanonet.core.files import write_json


def label_maps(names: list[str]) -> dict[str, Any]:
    """Return class names as a Hugging Face configuration holds them."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def write_config(family: str, names: list[str], folder: Path) -> None:
    """Write the ``config.json`` of an ONNX model: its family and labels, which is all it needs."""
    write_json(folder / CONFIG, {"model_type": family, **label_maps(names)})


def write_tokenizer_config(max_length: int, special_tokens: dict[str, str], folder: Path) -> None:
    """Write a ``tokenizer_config.json`` that leaves ``tokenizer.json`` alone.

    With the name of a family's own tokenizer, transformers would build parts of it anew.
    """
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / TOKENIZER_CONFIG, settings | special_tokens)
