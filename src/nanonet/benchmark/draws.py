"""Label draws: of each data set, a few labelled rows and the rest without labels, written once."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nanonet.benchmark.suite import DatasetConfig
from nanonet.core.errors import DataError
from nanonet.core.files import new_folder, write_json
from nanonet.data.checks import fingerprint
from nanonet.data.readers import LabelUse, TextTable, read_table, table_from_lists
from nanonet.data.splits import Split, split_table, write_split
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

    def path(self, key: str) -> Path:
        """Return the path of a file by its key."""
        name: str = getattr(self.config, key)
        return (self.root / name).resolve()

    def identity(self, draw: int) -> dict[str, Any]:
        """Return what a draw depends on."""
        labeled_per_class = self.config.labeled_per_class
        return {**self._fingerprints, "labeled_per_class": labeled_per_class, "draw": draw}

    @cached_property
    def _fingerprints(self) -> dict[str, str | None]:
        tables = {"train": self.train, "test": self.test, "exclude": self.exclude}
        return {key: None if t is None else fingerprint(t) for key, t in tables.items()}

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
    classes = LabelSet.from_columns(train.labels or [], train.names, train.source, train.rows)
    try:
        classes.encode(test.labels or [], test.source, test.rows, test.names)
    except DataError as error:
        raise DataError(f"datasets.{name}.test: {error}") from None
    return Dataset(name, config, root, train, test, exclude)


def draw(dataset: Dataset, seed: int) -> Split:
    """Return a draw; no text of the test file or the excluded file is in any part.

    Raises:
        DataError: a class has too few rows, or none are left without a label.
    """
    tables = [t for t in (dataset.test, dataset.exclude) if t is not None]
    kept_out = table_from_lists(
        [text for table in tables for text in table.texts],
        source=" and ".join(table.source for table in tables),
    )
    labeled = dataset.config.labeled_per_class
    try:
        split = split_table(dataset.train, labeled_per_class=labeled, seed=seed, exclude=kept_out)
    except DataError as error:
        raise DataError(f"datasets.{dataset.name}: {error}") from None
    if not split.unlabeled:
        raise DataError(
            f"datasets.{dataset.name}: labeled_per_class={labeled} leaves no text without a label;"
            " draw fewer"
        )
    return split


def is_written(folder: Path, identity: dict[str, Any]) -> bool:
    """Return whether a folder holds this very draw."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    parts = (folder / f"{part}{SUFFIX}" for part in ("labeled", "unlabeled"))
    return bool(record == identity) and all(part.is_file() for part in parts)


def write_draw(dataset: Dataset, split: Split, folder: Path) -> None:
    """Write the files of a draw; what stands at ``folder`` is replaced."""
    with new_folder(folder) as temporary:
        write_split(split, dataset.train, temporary, SUFFIX)
        write_json(temporary / RECORD, dataset.identity(split.seed))
