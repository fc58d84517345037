"""Tiny random encoders and made-up texts for the tests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLASS_WORDS = [
    ["apple", "pear", "plum", "cherry", "melon", "grape"],
    ["iron", "copper", "zinc", "silver", "tin", "lead"],
    ["river", "lake", "pond", "brook", "sea", "canal"],
]
FILLER = ["the", "a", "of", "and", "is", "was", "in", "on", "with", "seen", "old", "new", "small"]
WORDS = [*FILLER, *(word for words in CLASS_WORDS for word in words)]


def make_texts(per_class: int, classes: int = 3, seed: int = 0) -> tuple[list[str], list[int]]:
    """Return distinct texts of 3 to 14 words and their classes, class by class in turn."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    labels: list[int] = []
    while len(texts) < per_class * classes:
        label = len(texts) % classes
        own = rng.choice(CLASS_WORDS[label], size=rng.integers(1, 4))
        words = [*own, *rng.choice(FILLER, size=rng.integers(2, 12))]
        text = " ".join(rng.permutation(words))
        if text not in texts:
            texts.append(text)
            labels.append(label)
    return texts, labels


def make_tokenizer() -> Any:
    """Return a fast word-level tokenizer, lower-casing, ``[CLS] text [SEP]``."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def bert_config(**changes: Any) -> Any:
    """Return the configuration of a tiny BERT."""
    from transformers import BertConfig

    values = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    return BertConfig(**(values | changes))


def modernbert_config(**changes: Any) -> Any:
    """Return the configuration of a tiny ModernBERT: every third layer global, window 4."""
    from transformers import ModernBertConfig

    values = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "local_attention": 8,
        "global_attn_every_n_layers": 3,
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "classifier_pooling": "mean",
    }
    return ModernBertConfig(**(values | changes))


def make_model(config: Any, seed: int = 0) -> Any:
    """Return a random encoder whose biases and norms are not at their neutral values."""
    from transformers import AutoModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
            else:
                parameter.data = 0.15 * torch.randn_like(parameter)
    return model.eval()


def save_folder(config: Any, folder: Path) -> Path:
    """Save a random encoder with its tokenizer, and return the folder."""
    make_model(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


# Small enough for many steps a second; every kind of event (log, checkpoint) happens.
SETTINGS = {
    "data": {"max_length": 16},
    "cohort": {"student_layers": 2},
    "warmup": {"steps": 0},
    "training": {
        "steps": 6,
        "labeled_batch": 6,
        "unlabeled_batch": 8,
        "token_budget": 128,
        "checkpoint_every": 2,
        "log_every": 3,
        "precision": "fp32",
        "device": "cpu",
        "threads": 1,
    },
}


# Of the recipe nanonet in six steps: two prepare the teacher, and it learns to the end.
WINDOWS = {
    "propagation": {"at": 0.25},
    "phases": {
        "preparation": {"stop": 0.25},
        "teacher": {"start": 0.25, "stop": 1.0},
        "students": {"start": 0.25},
    },
}

WINDOW_FLAGS = ["--set", f"propagation.at={WINDOWS['propagation']['at']}"]
for _name, _window in WINDOWS["phases"].items():
    for _key, _value in _window.items():
        WINDOW_FLAGS += ["--set", f"phases.{_name}.{_key}={_value}"]

AT_ONCE = "at once"  # the recipe nanonet, but all learn at every step, and no label spreads


def make_settings(
    folder: Path | str, *assignments: str, recipe: str = "nanonet", windows: bool = True
) -> Any:
    """Return the configuration of a small run on a saved encoder.

    Args:
        folder: of the encoder.
        assignments: further settings, as after --set.
        recipe: a recipe's name, or `AT_ONCE`.
        windows: of the recipe nanonet are `WINDOWS`.
    """
    from nanonet.core.config import Config, make_config
    from nanonet.core.strict import build, merge, parse_set

    values = merge(SETTINGS, {"backbone": {"name": str(folder)}})
    if recipe == "nanonet" and windows:
        values = merge(values, WINDOWS)
    values = merge(values, parse_set(assignments))
    if recipe != AT_ONCE:
        return make_config(recipe, values)
    return build(Config, merge(at_once_tables(), values))


def at_once_tables() -> dict[str, Any]:
    """Return the tables of `AT_ONCE`."""
    from nanonet.core.config import read_recipe

    tables = read_recipe("nanonet")
    del tables["propagation"], tables["phases"]["preparation"]
    del tables["phases"]["teacher"]["objectives"]["propagation"]
    for phase in tables["phases"].values():
        phase.pop("stop", None)
        del phase["start"]
    return tables


def make_tables(labeled: int = 4, unlabeled: int = 10, validation: int = 0, seed: int = 0) -> Any:
    """Return made-up tables with this many texts per class (3 classes), no text twice."""
    from nanonet.data.readers import table_from_lists
    from nanonet.training.inputs import TrainingTables

    counts = [3 * count for count in (labeled, unlabeled, validation)]
    texts, labels = make_texts(sum(counts) // 3, seed=seed)
    parts = []
    for name, count in zip(("labeled", "unlabeled", "validation"), counts, strict=True):
        own, texts = texts[:count], texts[count:]
        truth, labels = labels[:count], labels[count:]
        known = None if name == "unlabeled" else truth
        parts.append(table_from_lists(own, known, source=name) if count else None)
    return TrainingTables(*parts)
