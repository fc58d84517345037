"""How much the labelled texts of each class count."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import Config
from nanonet.core.errors import ConfigError
from nanonet.core.registry import did_you_mean
from nanonet.tasks.labels import LabelSet

KEY = "training.class_weight"
NONE, BALANCED = "none", "balanced"


def check_class_weight(config: Config) -> None:
    """Refuse a setting that means nothing, before any data is read.

    Raises:
        ConfigError: neither ``none`` nor ``balanced`` nor weights above 0; or for a summarizer.
    """
    asked = config.training.class_weight
    if asked == NONE:
        return
    if config.task != "classification":
        raise ConfigError(f"{KEY} is for classification: leave it out")
    if isinstance(asked, str) and asked != BALANCED:
        raise ConfigError(
            f"key '{KEY}' is {asked!r}{did_you_mean(asked, [NONE, BALANCED])}, but must be"
            f" {NONE}, {BALANCED} or a table of weights such as {{spam = 5.0}}"
        )
    for label, weight in asked.items() if isinstance(asked, Mapping) else ():
        if not (weight > 0.0 and math.isfinite(weight)):
            raise ConfigError(f"key '{KEY}.{label}' is {weight}, but must be above 0")


def class_weights(
    config: Config, labels: LabelSet, truth: NDArray[np.int64]
) -> NDArray[np.float32] | None:
    """Return the weight of each class, (C,), or None where all count the same.

    ``balanced`` is scikit-learn's n / (C n_c), n_c being the labelled texts of class c. In a table
    a label goes by value or name; what it leaves out weighs 1.

    Raises:
        ConfigError: a label that there is not.
    """
    asked = config.training.class_weight
    if isinstance(asked, str):
        if asked == NONE:
            return None
        counts = np.bincount(truth, minlength=len(labels))
        return (len(truth) / (len(labels) * counts)).astype(np.float32)
    weights = np.ones(len(labels), dtype=np.float32)
    for i, weight in by_class(asked, labels, KEY).items():
        weights[i] = weight
    return weights


def by_class(asked: Mapping[str, float], labels: LabelSet, key: str) -> dict[int, float]:
    """Return the numbers of a table of settings by class index; a label goes by value or name.

    Raises:
        ConfigError: a label that there is not.
    """
    index = {str(value): i for i, value in enumerate(labels.values)}
    index |= {name: i for i, name in enumerate(labels.names)}
    for label in asked:
        if label not in index:
            raise ConfigError(
                f"key '{key}.{label}' names no label{did_you_mean(label, list(index))}; there are:"
                f" {', '.join(labels.names)}"
            )
    return {index[label]: number for label, number in asked.items()}
