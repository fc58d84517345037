"""How common the classes are among the texts to come, which labelled texts rarely tell.

Who labels ten texts of each class gets a model to which all classes are equally common. Where the
unlabelled texts show that they are not, the model that ships is fitted to their shares.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nanonet.core.bundle import Priors
from nanonet.core.config import Config
from nanonet.core.errors import ConfigError
from nanonet.core.registry import did_you_mean
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.metrics import Floats
from nanonet.tasks.priors import distance, estimate_shares
from nanonet.training.weights import by_class

KEY = "training.class_prior"
AUTO, LABELED = "auto", "labeled"
# Labelled texts count as drawn class by class, and not as the world has them, if no class has more
# than this many times as many as another.
BALANCED = 1.5
# What is estimated must be this far from what was learnt, beyond what chance alone would do.
# Measured in docs/probabilities.md.
LEAST_DISTANCE = 0.25
FEWEST_TEXTS = 30  # per class: with fewer, errors of the model pass for shares
SHOWN = 6  # classes


def check_class_prior(config: Config) -> None:
    """Refuse a setting that means nothing, before any data is read.

    Raises:
        ConfigError: neither ``auto`` nor ``labeled`` nor shares above 0 that sum to 1; or for a
            summarizer.
    """
    asked = config.training.class_prior
    if asked in (AUTO, LABELED):
        return
    if config.task != "classification":
        raise ConfigError(f"{KEY} is for classification: leave it out")
    if isinstance(asked, str):
        raise ConfigError(
            f"key '{KEY}' is {asked!r}{did_you_mean(asked, [AUTO, LABELED])}, but must be"
            f" {AUTO}, {LABELED} or a table of shares such as {{spam = 0.1, ham = 0.9}}"
        )
    for label, share in asked.items():
        if not 0.0 < share < 1.0:
            raise ConfigError(f"key '{KEY}.{label}' is {share}, but must be between 0 and 1")
    if not math.isclose(sum(asked.values()), 1.0, abs_tol=1e-3):
        raise ConfigError(f"key '{KEY}': the shares sum to {sum(asked.values()):g}, but must to 1")


def given_priors(config: Config, labels: LabelSet, truth: NDArray[np.int64]) -> Priors | None:
    """Return the shares that the settings give; None where they give none.

    Args:
        config: the settings.
        labels: the classes.
        truth: class indexes of the labelled texts, (n,).

    Raises:
        ConfigError: a label that there is not, or one without a share.
    """
    asked = config.training.class_prior
    if not isinstance(asked, Mapping):
        return None
    shares = by_class(asked, labels, KEY)
    if missing := [name for i, name in enumerate(labels.names) if i not in shares]:
        raise ConfigError(
            f"key '{KEY}' gives no share of {', '.join(missing)}: give all classes one"
        )
    total = sum(shares.values())
    method = f"the setting {KEY}"
    return Priors(
        [shares[i] / total for i in range(len(labels))], _learnt(truth, len(labels)), method
    )


def estimated_priors(probabilities: Floats, truth: NDArray[np.int64], rows: str) -> Priors | None:
    """Return the shares that unlabelled texts show; None where they are about those learnt.

    Also None where the labelled texts are not balanced: they are then taken for a sample of the
    texts to come. And where there are too many classes for so many texts.

    Args:
        probabilities: of the learner that ships, calibrated, (n, C).
        truth: class indexes of the labelled texts.
        rows: what the unlabelled texts are, in words.
    """
    counts = np.bincount(truth, minlength=probabilities.shape[1])
    if counts.max() > BALANCED * counts.min() or len(probabilities) < FEWEST_TEXTS * len(counts):
        return None
    learnt = np.array(_learnt(truth, len(counts)))
    shares = estimate_shares(probabilities, learnt)
    # Mean absolute deviation of n draws, the normal approximation.
    chance = np.sqrt(2 * learnt * (1 - learnt) / (np.pi * len(probabilities))).sum() / 2
    if distance(shares, learnt) < LEAST_DISTANCE + chance:
        return None
    return Priors(shares.tolist(), learnt.tolist(), f"estimated on {rows}, without labels")


def describe_priors(priors: Priors, labels: LabelSet) -> str:
    """Return a line that says what the model that ships is fitted to."""
    pairs = zip(labels.names, priors.shares, strict=True)
    common = [f"{name} {share:.1%}" for name, share in sorted(pairs, key=lambda pair: -pair[1])]
    rest = ", …" if len(common) > SHOWN else ""
    return (
        f"fitted to how common the classes are ({priors.method}): {', '.join(common[:SHOWN])}{rest}"
    )


def _learnt(truth: NDArray[np.int64], classes: int) -> list[float]:
    shares: list[float] = (np.bincount(truth, minlength=classes) / len(truth)).tolist()
    return shares
