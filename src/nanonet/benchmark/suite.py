"""The suite: which methods on which data sets, over how many label draws and seeds.

::

    [settings]                            # for all methods; a method's own settings lie on top
    training.steps = 100

    [datasets.questions]
    train = "questions/train.parquet"     # paths are relative to the suite's file
    test = "questions/test.parquet"
    exclude = "questions/validation.parquet"
    labeled_per_class = 10

    [datasets.questions-among-news]
    train = "questions/train.parquet"
    test = "questions/test.parquet"
    foreign = "news/train.parquet"        # half of the texts without labels are news

    [run]
    draws = 5                             # label draws 0 to 4
    seeds = 1                             # training seeds from 0

    [methods.no-mutual]
    recipe = "nanonet"
    settings.phases.students.objectives.mutual.weight = 0
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nanonet.core.errors import ConfigError
from nanonet.core.registry import did_you_mean
from nanonet.core.strict import build, setting
from nanonet.data.readers import Columns

_NAME = re.compile(r"[\w+-][\w.+-]*")  # of methods and data sets: they name folders


@dataclass(frozen=True)
class DatasetConfig:
    """A labelled file to draw from and another to score on."""

    train: str
    test: str
    exclude: str = ""  # texts that are never drawn, beside those of the test file; "": none
    labeled_per_class: int = setting(10, 1)
    text_column: str = "text"
    label_column: str = "label"
    label_name_column: str = "label_name"
    # What makes it hard; test rows stay as they are.
    imbalance: float = setting(1.0, 1.0)  # the first class is so many times as common as the last
    wrong_labels: float = setting(0.0, 0.0, 0.9)  # share of labelled rows with another's label
    foreign: str = ""  # a file whose texts are mixed into those without labels; "": none
    foreign_share: float = setting(0.5, 0.01, 0.99)  # of the texts without labels, where mixed in

    @property
    def hardships(self) -> dict[str, Any]:
        """What makes it hard: nothing, for most."""
        found: dict[str, Any] = {}
        if self.imbalance > 1.0:
            found["imbalance"] = self.imbalance
        if self.wrong_labels > 0.0:
            found["wrong_labels"] = self.wrong_labels
        if self.foreign:
            found |= {"foreign": self.foreign, "foreign_share": self.foreign_share}
        return found

    @property
    def columns(self) -> Columns:
        """The columns of all its files."""
        return Columns(self.text_column, self.label_column, self.label_name_column)


@dataclass(frozen=True)
class RunConfig:
    """How often each method is run on each data set: draws times seeds."""

    draws: int = setting(5, 1)  # label draws
    seeds: int = setting(1, 1)  # training seeds on each draw


@dataclass(frozen=True)
class Suite:
    """A suite's file; the tables of methods are checked by their kind, see `methods`."""

    settings: dict[str, Any] = field(default_factory=dict)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_suite(path: Path, draws: int | None = None, seeds: int | None = None) -> Suite:
    """Return the suite of a TOML file.

    Args:
        path: the file.
        draws: instead of the file's ``run.draws``.
        seeds: instead of the file's ``run.seeds``.

    Raises:
        ConfigError: no such file, no TOML, or a key that is unknown, missing or out of range.
    """
    if not path.is_file():
        raise ConfigError(f"suite {path} does not exist")
    try:
        suite = build(Suite, tomllib.loads(path.read_text(encoding="utf-8")))
        _check_names(suite)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"suite {path} cannot be read: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"suite {path}: {error}") from None
    run = suite.run
    return replace(suite, run=RunConfig(draws or run.draws, seeds or run.seeds))


def _check_names(suite: Suite) -> None:
    if not suite.datasets:
        raise ConfigError("there is no data set: add a table [datasets.NAME] with train and test")
    for table, names in (("datasets", suite.datasets), ("methods", suite.methods)):
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{table}.{name!r}: a name holds letters, digits and any of _ . + -, as it"
                    " becomes a folder"
                )
    if "seed" in suite.settings:
        raise ConfigError("settings.seed: the seeds follow from run.seeds; remove it")


def chosen(patterns: Iterable[str], names: list[str], option: str, what: str) -> list[str]:
    """Return the names that any of the patterns (names or globs) match; all without patterns.

    Raises:
        ConfigError: a pattern that matches none.
    """
    patterns = list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"{option} {pattern} matches no {what}{did_you_mean(pattern, names)}; there are:"
                f" {', '.join(names)}"
            )
    return [n for n in names if not patterns or any(fnmatchcase(n, p) for p in patterns)]
