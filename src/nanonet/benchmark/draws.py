"""Label draws: of each data set, a few labelled rows and the rest without labels, written once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.benchmark.suite import DatasetConfig
from nanonet.core.errors import DataError
from nanonet.core.files import new_folder, write_json
from nanonet.data.checks import fingerprint, normalize_text
from nanonet.data.readers import LabelUse, TextTable, read_table, table_from_lists
from nanonet.data.splits import split_table
from nanonet.data.writers import write_table
from nanonet.tasks.labels import LabelSet

RECORD = "draw.json"
SUFFIX = ".parquet"


@dataclass(frozen=True)
class Dataset:
    """A data set whose files have been read and checked."""

    name: str
    config: DatasetConfig
    root: Path
    train: TextTable
    test: TextTable
    exclude: TextTable | None
    foreign: TextTable | None

    def path(self, key: str) -> Path:
        """Return the path of a file by its key."""
        name: str = getattr(self.config, key)
        return (self.root / name).resolve()

    def identity(self, draw: int) -> dict[str, Any]:
        """Return what a draw depends on."""
        labeled_per_class = self.config.labeled_per_class
        found = {**self._fingerprints, "labeled_per_class": labeled_per_class, "draw": draw}
        hardships = self.config.hardships
        if self.foreign is not None:
            hardships["foreign"] = fingerprint(self.foreign)
        return found | hardships

    @cached_property
    def _fingerprints(self) -> dict[str, str | None]:
        tables = {"train": self.train, "test": self.test, "exclude": self.exclude}
        return {key: None if t is None else fingerprint(t) for key, t in tables.items()}

    @cached_property
    def classes(self) -> LabelSet:
        """The classes of the training file."""
        train = self.train
        return LabelSet.from_columns(train.labels or [], train.names, train.source, train.rows)

    def describe(self) -> dict[str, Any]:
        """Return what a reader of the results should know."""
        labels = self.train.labels or []
        return {
            "train": self.config.train,
            "test": self.config.test,
            "exclude": self.config.exclude or None,
            "labeled_per_class": self.config.labeled_per_class,
            "classes": len(set(labels)),
            "train_rows": len(self.train.texts),
            "test_rows": len(self.test.texts),
            **self.config.hardships,
        }


def read_dataset(name: str, config: DatasetConfig, root: Path) -> Dataset:
    """Read the files of a data set.

    Raises:
        DataError: a file is missing or unusable, or the test file has a label that the training
            file lacks; names the key and the file.
    """

    def table(key: str, labels: LabelUse) -> TextTable:
        try:
            return read_table(root / getattr(config, key), config.columns, labels=labels)
        except DataError as error:
            raise DataError(f"datasets.{name}.{key}: {error}") from None

    train, test = table("train", "required"), table("test", "required")
    exclude = table("exclude", "ignored") if config.exclude else None
    foreign = table("foreign", "ignored") if config.foreign else None
    dataset = Dataset(name, config, root, train, test, exclude, foreign)
    try:
        dataset.classes.encode(test.labels or [], test.source, test.rows, test.names)
    except DataError as error:
        raise DataError(f"datasets.{name}.test: {error}") from None
    return dataset


@dataclass(frozen=True)
class Draw:
    """What a method is given.

    Attributes:
        labeled: texts.
        labels: class indexes of the labelled texts.
        unlabeled: texts.
        seed: of the draw.
    """

    labeled: list[str]
    labels: list[int]
    unlabeled: list[str]
    seed: int


def draw(dataset: Dataset, seed: int) -> Draw:
    """Return a draw; no text of the test file or the excluded file is in any part.

    Raises:
        DataError: a class has too few rows, or none are left without a label.
    """
    tables = [t for t in (dataset.test, dataset.exclude) if t is not None]
    kept_out = table_from_lists(
        [text for table in tables for text in table.texts],
        source=" and ".join(table.source for table in tables),
    )
    config, train = dataset.config, dataset.train
    labeled = config.labeled_per_class
    try:
        split = split_table(train, labeled_per_class=labeled, seed=seed, exclude=kept_out)
    except DataError as error:
        raise DataError(f"datasets.{dataset.name}: {error}") from None
    ids = dataset.classes.encode(train.labels or [], train.source, train.rows)
    rows, pool = split.labeled, split.unlabeled
    if config.imbalance > 1.0:
        rows, pool = (_thinned(part, ids, config.imbalance) for part in (rows, pool))
    if not pool:
        raise DataError(
            f"datasets.{dataset.name}: labeled_per_class={labeled} leaves no text without a label;"
            " draw fewer"
        )
    labels, unlabeled = ids[rows].tolist(), [train.texts[i] for i in pool]
    chance = np.random.default_rng((seed, len(dataset.classes)))
    if config.wrong_labels > 0.0:
        labels = _confused(labels, len(dataset.classes), config.wrong_labels, chance)
    if dataset.foreign is not None:
        known = {normalize_text(text) for text in (*train.texts, *kept_out.texts)}
        others = [t for t in dict.fromkeys(dataset.foreign.texts) if normalize_text(t) not in known]
        unlabeled = _mixed(unlabeled, others, config.foreign_share, chance)
        if not unlabeled:
            raise DataError(
                f"datasets.{dataset.name}: {len(pool)} texts and {len(others)} foreign ones make no"
                f" mixture with foreign_share={config.foreign_share}"
            )
    return Draw([train.texts[i] for i in rows], labels, unlabeled, seed)


def _thinned(rows: list[int], ids: NDArray[np.int64], imbalance: float) -> list[int]:
    """Return the first rows of each class, fewer from class to class, in the order they were in.

    The first class keeps all, the last one row in ``imbalance``, those between fall geometrically;
    none loses all.
    """
    classes = int(ids.max()) + 1
    left = {}
    for c in range(classes):
        count = int(np.count_nonzero(ids[rows] == c))
        left[c] = min(count, max(1, round(count * imbalance ** (-c / max(classes - 1, 1)))))
    kept = []
    for row in rows:
        left[ids[row]] -= 1
        if left[ids[row]] >= 0:
            kept.append(row)
    return kept


def _confused(
    labels: list[int], classes: int, share: float, chance: np.random.Generator
) -> list[int]:
    """Return labels of which a share, by chance, are another class's.

    The first label of each class stays, or the class might be lost.
    """
    open_to_change = [i for i, label in enumerate(labels) if label in labels[:i]]
    count = min(round(share * len(labels)), len(open_to_change))
    changed = list(labels)
    for i in chance.choice(open_to_change, size=count, replace=False) if count else []:
        changed[i] = (labels[i] + int(chance.integers(1, classes))) % classes
    return changed


def _mixed(
    texts: list[str], others: list[str], share: float, chance: np.random.Generator
) -> list[str]:
    """Return texts of which a share are others, as many as the smaller source allows, shuffled."""
    count = min(len(others), round(len(texts) * share / (1.0 - share)))
    own = min(len(texts), round(count * (1.0 - share) / share))
    if not (own and count):
        return []
    mixed = [texts[i] for i in chance.choice(len(texts), size=own, replace=False)]
    mixed += [others[i] for i in chance.choice(len(others), size=count, replace=False)]
    return [mixed[i] for i in chance.permutation(len(mixed))]


def is_written(folder: Path, identity: dict[str, Any]) -> bool:
    """Return whether a folder holds this very draw."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    parts = (folder / f"{part}{SUFFIX}" for part in ("labeled", "unlabeled"))
    return bool(record == identity) and all(part.is_file() for part in parts)


def write_draw(dataset: Dataset, drawn: Draw, folder: Path) -> None:
    """Write the files of a draw; what stands at ``folder`` is replaced."""
    classes = dataset.classes
    with new_folder(folder) as temporary:
        columns: dict[str, Sequence[object]] = {
            "text": drawn.labeled,
            "label": [classes.values[c] for c in drawn.labels],
            "label_name": [classes.names[c] for c in drawn.labels],
        }
        write_table(temporary / f"labeled{SUFFIX}", columns)
        write_table(temporary / f"unlabeled{SUFFIX}", {"text": drawn.unlabeled})
        write_json(temporary / RECORD, dataset.identity(drawn.seed))
