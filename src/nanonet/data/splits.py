"""Draw few-shot splits: N labelled texts per class, a validation part, the rest unlabelled.

Draws are nested. Every row gets a random key that depends on the seed, its class and its place in
the file, and on nothing else; a class is sorted by key, the labelled texts are its first N and the
validation texts its last V. So the labelled texts for N=10 are the first ten of those for N=30.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.errors import ConfigError, DataError
from nanonet.core.files import new_folder, sha256_file
from nanonet.data.checks import conflicting_duplicates, normalize_text
from nanonet.data.formats import SUFFIXES
from nanonet.data.readers import TextTable
from nanonet.data.writers import write_table
from nanonet.tasks.labels import LabelSet, quoted

_NOTE = (
    "Nested: with the same source file, seed and excluded texts, a smaller labeled_per_class "
    "draws the first rows of each class of a larger one. label_hidden is the truth of the "
    "unlabelled texts: never train or select on it."
)


@dataclass(frozen=True)
class Split:
    """Disjoint indexes into a table, and what was left out.

    ``labeled`` and ``validation`` are grouped by class, each class in the order it was drawn;
    ``unlabeled`` keeps the order of the table.
    """

    labeled: list[int]
    validation: list[int]
    unlabeled: list[int]
    duplicates_dropped: int
    conflicts_dropped: int
    excluded_dropped: int
    seed: int
    labeled_per_class: int
    validation_per_class: int
    exclude_source: str | None


def split_table(
    table: TextTable,
    *,
    labeled_per_class: int,
    validation_per_class: int = 0,
    seed: int,
    exclude: TextTable | None = None,
) -> Split:
    """Draw a stratified, nested, leak-checked split of a labelled table.

    Texts count as copies by their normalised form. Of copies the first is kept; texts with
    conflicting labels are left out entirely, and so are those that occur in ``exclude`` (for
    example a test file).

    Raises ``ConfigError`` for a number out of range, ``DataError`` when the table has no labels,
    fewer than two classes, or a class with too few rows.
    """
    _refuse_out_of_range(labeled_per_class, validation_per_class, seed)
    if table.labels is None:
        raise DataError(f"{table.source} has no labels to split by; add a label column")
    label_set = LabelSet.from_columns(table.labels, table.names, table.source, table.rows)
    if len(label_set) < 2:
        raise DataError(
            f"{table.source} has only one class ({quoted(label_set.names[0])}); "
            "give examples of at least two"
        )
    ids = label_set.encode(table.labels, table.source, table.rows)
    kept, dropped = _without_leaks(table, ids, exclude)
    keys = _random_keys(ids, len(label_set), seed)
    by_class: list[list[int]] = [[] for _ in label_set.values]
    for i in sorted(kept, key=lambda i: float(keys[i])):
        by_class[ids[i]].append(i)
    _refuse_small(table.source, label_set, ids, by_class, labeled_per_class, validation_per_class)
    labeled = [i for rows in by_class for i in rows[:labeled_per_class]]
    # Not rows[-V:], which would be everything for V=0.
    validation = [i for rows in by_class for i in rows[len(rows) - validation_per_class :]]
    drawn = {*labeled, *validation}
    return Split(
        labeled=labeled,
        validation=validation,
        unlabeled=[i for i in kept if i not in drawn],
        duplicates_dropped=dropped["duplicates"],
        conflicts_dropped=dropped["conflicts"],
        excluded_dropped=dropped["excluded"],
        seed=seed,
        labeled_per_class=labeled_per_class,
        validation_per_class=validation_per_class,
        exclude_source=exclude.source if exclude else None,
    )


def _refuse_out_of_range(labeled_per_class: int, validation_per_class: int, seed: int) -> None:
    for name, value, least in (
        ("labeled_per_class", labeled_per_class, 1),
        ("validation_per_class", validation_per_class, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")


def _without_leaks(
    table: TextTable, ids: NDArray[np.int64], exclude: TextTable | None
) -> tuple[list[int], dict[str, int]]:
    """Return the indexes to draw from, ascending, and how many rows were left out for what."""
    texts = [normalize_text(text) for text in table.texts]
    excluded = {normalize_text(text) for text in exclude.texts} if exclude else set()
    conflicts = {texts[i] for _, i in conflicting_duplicates(texts, ids.tolist())}
    dropped = {"duplicates": 0, "conflicts": 0, "excluded": 0}
    seen: set[str] = set()
    kept = []
    for i, text in enumerate(texts):
        if text in conflicts:
            dropped["conflicts"] += 1
        elif text in excluded:
            dropped["excluded"] += 1
        elif text in seen:
            dropped["duplicates"] += 1
        else:
            seen.add(text)
            kept.append(i)
    return kept, dropped


def _random_keys(ids: NDArray[np.int64], classes: int, seed: int) -> NDArray[np.float64]:
    """Return one key in [0, 1) per row, shape (n,), drawn for each class on its own.

    Rows that are left out get a key too, so that leaving one out never reorders the others.
    """
    keys = np.empty(len(ids))
    for c in range(classes):
        of_class = np.flatnonzero(ids == c)
        keys[of_class] = np.random.default_rng((seed, c)).random(len(of_class))
    return keys


def _refuse_small(
    source: str,
    label_set: LabelSet,
    ids: NDArray[np.int64],
    by_class: Sequence[Sequence[int]],
    labeled_per_class: int,
    validation_per_class: int,
) -> None:
    """Raise ``DataError`` when the smallest class is too small."""
    smallest = min(range(len(by_class)), key=lambda c: len(by_class[c]))
    count = len(by_class[smallest])
    if count >= labeled_per_class + validation_per_class:
        return
    largest = count - validation_per_class
    if largest >= 1:
        advice = f"the largest possible labeled_per_class is {largest}"
    else:
        advice = "give this class more rows or lower validation_per_class"
    raise DataError(
        f"{source}: class {quoted(label_set.names[smallest])} has {count} usable rows (of "
        f"{np.count_nonzero(ids == smallest)}, without copies and excluded texts), fewer than "
        f"{labeled_per_class} labelled and {validation_per_class} for validation; {advice}"
    )


def write_split(split: Split, table: TextTable, out: Path, suffix: str) -> None:
    """Write a split as files of type ``suffix`` (such as ``".csv"``) into the new folder ``out``.

    ``labeled`` and ``validation`` hold the columns text, label and label_name; ``unlabeled`` holds
    text and label_hidden. A part without rows gets no file. ``split.json`` says where the split
    comes from. The folder appears complete or not at all; an empty one may exist already.

    Raises ``DataError`` when ``out`` exists and is not empty or cannot be written.
    """
    if suffix not in SUFFIXES:
        raise DataError(f"unknown file type {quoted(suffix)}; supported are {', '.join(SUFFIXES)}")
    out = Path(out)
    if out.name in ("", ".."):
        raise DataError(f"{out} cannot become a split; name a new folder")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; name a new one")
    try:
        with new_folder(out) as folder:
            _write_files(split, table, folder, suffix)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error


def _write_files(split: Split, table: TextTable, folder: Path, suffix: str) -> None:
    """Write the data files and ``split.json`` into ``folder``."""
    assert table.labels is not None, "split_table refuses tables without labels"
    label_set = LabelSet.from_columns(table.labels, table.names, table.source, table.rows)
    ids = label_set.encode(table.labels, table.source, table.rows)
    parts = {
        "labeled": split.labeled,
        "validation": split.validation,
        "unlabeled": split.unlabeled,
    }
    for part, rows in parts.items():
        texts = [table.texts[i] for i in rows]
        values = [label_set.values[ids[i]] for i in rows]
        names = [label_set.names[ids[i]] for i in rows]
        if not rows:
            # A file without rows could not be read back.
            continue
        if part == "unlabeled":
            columns: dict[str, Sequence[object]] = {"text": texts, "label_hidden": values}
        else:
            columns = {"text": texts, "label": values, "label_name": names}
        write_table(folder / f"{part}{suffix}", columns)
    record = _record(split, table, label_set, ids)
    record["files"] = [f"{part}{suffix}" for part, rows in parts.items() if rows]
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (folder / "split.json").write_text(text, encoding="utf-8")


def _record(
    split: Split, table: TextTable, label_set: LabelSet, ids: NDArray[np.int64]
) -> dict[str, Any]:
    """Return the content of ``split.json``."""
    source = Path(table.source)
    counts = {
        part: np.bincount(ids[np.array(rows, dtype=np.int64)], minlength=len(label_set)).tolist()
        for part, rows in (
            ("labeled", split.labeled),
            ("validation", split.validation),
            ("unlabeled", split.unlabeled),
        )
    }
    return {
        "source": table.source,
        "source_sha256": sha256_file(source) if source.is_file() else None,
        "exclude": split.exclude_source,
        "seed": split.seed,
        "labeled_per_class": split.labeled_per_class,
        "validation_per_class": split.validation_per_class,
        "classes": [
            {"label": value, "name": name} | {part: counts[part][c] for part in counts}
            for c, (value, name) in enumerate(zip(label_set.values, label_set.names, strict=True))
        ],
        "dropped": {
            "duplicates": split.duplicates_dropped,
            "conflicts": split.conflicts_dropped,
            "excluded": split.excluded_dropped,
        },
        "note": _NOTE,
    }
