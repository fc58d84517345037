"""Read texts and labels from CSV, TSV, JSONL and Parquet files, from the hub and from lists.

Whatever is wrong with the input ends in a ``DataError`` of one line that names the file, the line
or row, and the column. Nothing is repaired silently: the only rows ever left out are empty
unlabelled texts, and those are counted.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nanonet.core.errors import DataError, MissingExtraError
from nanonet.core.registry import did_you_mean
from nanonet.data.checks import clean_label, clean_name, clean_text
from nanonet.data.formats import (
    BLOCK_ROWS,
    Block,
    Pick,
    arriving_blocks,
    file_format,
    first_line,
    read_blocks,
)
from nanonet.tasks.labels import Label, as_numbers, listing, place, quoted

LabelUse = Literal["required", "optional", "ignored"]

STDIN = "-"
HUB = "hub:"
_NUMBER_WITH_POINT = re.compile(r"[+-]?[0-9]+\.[0-9]+")


@dataclass(frozen=True)
class Columns:
    """The column names to read; ``label_name`` is used where it exists, and "" never is."""

    text: str = "text"
    label: str = "label"
    label_name: str = "label_name"


@dataclass(frozen=True)
class TextTable:
    """Texts, and labels where there are any; all lists have the same length n.

    ``rows`` holds each text's line (text files) or row (other sources) in ``source``, from 1.
    ``dropped_empty`` counts the empty unlabelled texts that were left out.
    """

    source: str
    texts: list[str]
    rows: list[int]
    labels: list[Label] | None
    names: list[str] | None
    dropped_empty: int


@dataclass(frozen=True)
class TextStream:
    """Texts without labels, of which a block at a time is in memory.

    ``blocks`` reads them from the start and yields (texts, number of empty ones left out).
    """

    source: str
    blocks: Callable[[], Iterator[tuple[list[str], int]]]


@dataclass(frozen=True)
class RawTable:
    """Columns as the format gave them, before their values are checked."""

    rows: list[int]
    texts: list[Any]
    labels: list[Any] | None
    names: list[Any] | None


def read_table(
    source: str | Path, columns: Columns, *, labels: LabelUse, keep_empty: bool = False
) -> TextTable:
    """Read a table from a file, or from the hub as ``hub:NAME`` or ``hub:NAME:SPLIT``.

    ``labels="required"`` wants a label and a text in every row; ``"optional"`` reads the label
    column if there is one; ``"ignored"`` never does. Without ``"required"``, rows with an empty
    text are left out and counted, unless ``keep_empty`` asks for every row. Labels that all read
    as whole numbers come back as ``int``.

    Raises ``DataError`` for anything unusable, ``MissingExtraError`` where Parquet or the hub
    needs a package that is not installed.
    """
    raw = read_raw(source, columns, labels, csv_label)
    return _checked(str(source), raw, columns, required=labels == "required", keep_empty=keep_empty)


def read_raw(
    source: str | Path, columns: Columns, labels: LabelUse, label_of: Callable[[str], Any]
) -> RawTable:
    """Return the columns of a file or of ``hub:NAME`` as they stand there.

    ``label_of`` makes a label of a CSV file's cell.
    """
    if str(source).startswith(HUB):
        return _read_hub(str(source), columns, labels)
    return _read_file(Path(source), columns, labels, label_of)


def stream_texts(
    source: str | Path, column: str, *, allow_nul: bool = True, pause: float | None = None
) -> Iterator[tuple[list[str], float]]:
    """Yield (texts, fraction of the source that has been read) for one block after the other.

    ``source`` is a file, ``hub:NAME``, or ``-``: JSON lines on standard input, of which no fraction
    is known (0). There, a block also ends after ``pause`` seconds without another line. Every row
    is kept, a missing text as ``""``. ``allow_nul=False`` refuses the NUL character, for an output
    that cannot hold it.

    Raises ``DataError`` for anything unusable, ``MissingExtraError`` where Parquet, ``.zst`` or
    the hub needs a package that is not installed.
    """
    name = str(source)
    if name.startswith(HUB):
        yield from _stream_hub(name, column)
        return
    pick = partial(_pick, columns=Columns(text=column), labels="ignored")
    name, blocks = open_blocks(name, pick, pause)
    for block in blocks:
        texts = []
        for row, (value,) in block.rows:
            texts.append(clean_text(value, place(name, row), column))
            if not allow_nul:
                refuse_nul(texts[-1], place(name, row), column)
        yield texts, block.fraction


def open_blocks(
    source: str,
    pick: Pick,
    pause: float | None = None,
    *,
    gaps: bool = False,
    characters: int | None = None,
) -> tuple[str, Iterator[Block]]:
    """Return what to call a file or, for ``-``, standard input, and the blocks of its rows.

    See `read_blocks` and `arriving_blocks`.
    """
    if source != STDIN:
        return source, read_blocks(Path(source), pick, gaps, characters)
    if sys.stdin is None:
        raise DataError("stdin is closed; give --input FILE")
    # Not sys.stdin: a thread that waits in it would break the interpreter's exit.
    stream = open(0, "rb", closefd=False)  # noqa: SIM115
    return "stdin", arriving_blocks(stream, "stdin", pick, pause, gaps, characters)


def refuse_nul(text: str, where: str, column: str) -> None:
    """Raise ``DataError`` for a text that a CSV file cannot hold."""
    if "\0" in text:
        raise DataError(
            f"{where}, column {quoted(column)}: holds a NUL character, which CSV cannot; "
            "write .jsonl or .parquet"
        )


def open_stream(source: str | Path, column: str) -> TextStream:
    """Return the texts of a file or of ``hub:NAME`` as a stream; empty ones are left out.

    Nothing is read yet: its blocks raise what `read_table` would.
    """

    def blocks() -> Iterator[tuple[list[str], int]]:
        rows = kept = 0
        for texts, _ in stream_texts(source, column):
            full = [text for text in texts if text.strip()]
            rows, kept = rows + len(texts), kept + len(full)
            yield full, len(texts) - len(full)
        refuse_nothing(str(source), column, rows, kept)

    return TextStream(str(source), blocks)


def stream_of(table: TextTable) -> TextStream:
    """Return the texts of a table as a stream."""

    def blocks() -> Iterator[tuple[list[str], int]]:
        for start in range(0, len(table.texts), BLOCK_ROWS):
            empty = table.dropped_empty if start == 0 else 0
            yield table.texts[start : start + BLOCK_ROWS], empty

    return TextStream(table.source, blocks)


def refuse_nothing(source: str, column: str, rows: int, kept: int) -> None:
    """Raise ``DataError`` where no text is left of the rows of a source."""
    if not rows:
        raise DataError(f"{source} has no rows; give at least one text")
    if not kept:
        raise DataError(f"{source}: column {quoted(column)} is empty in all {rows} rows")


def table_from_lists(
    texts: Iterable[Any], labels: Iterable[Any] | None = None, source: str = "the given lists"
) -> TextTable:
    """Make a table from lists, arrays or series of equal length n; ``labels`` may be absent.

    Raises ``DataError`` for a text that is no ``str``, an unusable label, or unequal lengths.
    With labels an empty text is an error, without them it is left out and counted.
    """
    for what, values in (("texts", texts), ("labels", [] if labels is None else labels)):
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise DataError(f"{source}: the {what} are one {type(values).__name__}; give a list")
    text_list = list(texts)
    label_list = None if labels is None else list(labels)
    if label_list is not None and len(label_list) != len(text_list):
        raise DataError(
            f"{source}: {len(text_list)} texts but {len(label_list)} labels; give one per text"
        )
    raw = RawTable(list(range(1, len(text_list) + 1)), text_list, label_list, None)
    return _checked(source, raw, Columns(), required=label_list is not None)


def _checked(
    source: str, raw: RawTable, columns: Columns, *, required: bool, keep_empty: bool = False
) -> TextTable:
    """Return the table once every value has been checked."""
    where = [place(source, row) for row in raw.rows]
    texts = [clean_text(t, w, columns.text, "text") for t, w in zip(raw.texts, where, strict=True)]
    empty = [i for i, text in enumerate(texts) if not text.strip()]
    refuse_nothing(source, columns.text, len(texts), len(texts) - len(empty))
    if empty and required:
        raise DataError(
            f"{where[empty[0]]}: column {quoted(columns.text)} is empty "
            f"({len(empty)} such rows in all); fill or remove them"
        )
    labels: list[Label] | None = None
    names: list[str] | None = None
    if raw.labels is not None:
        pairs = zip(raw.labels, where, strict=True)
        labels = as_numbers([clean_label(label, w, columns.label) for label, w in pairs])
    if raw.labels is not None and raw.names is not None:
        named = zip(raw.names, where, strict=True)
        names = [clean_name(name, w, columns.label_name) for name, w in named]
    left_out = set() if keep_empty else set(empty)
    kept = [i for i in range(len(texts)) if i not in left_out]
    return TextTable(
        source=source,
        texts=[texts[i] for i in kept],
        rows=[raw.rows[i] for i in kept],
        labels=None if labels is None else [labels[i] for i in kept],
        names=None if names is None else [names[i] for i in kept],
        dropped_empty=len(empty),
    )


def _pick(source: str, available: Sequence[str], columns: Columns, labels: LabelUse) -> list[str]:
    """Return the names of the columns to read: text, and where used label and label name."""
    _require(source, available, columns.text, "data.text_column")
    if labels == "ignored" or (labels == "optional" and columns.label not in available):
        return [columns.text]
    _require(source, available, columns.label, "data.label_column")
    if not columns.label_name:
        return [columns.text, columns.label]
    if columns.label_name in available or columns.label_name != Columns().label_name:
        _require(source, available, columns.label_name, "data.label_name_column")
        return [columns.text, columns.label, columns.label_name]
    return [columns.text, columns.label]


def _require(source: str, available: Sequence[str], column: str, option: str) -> None:
    count = list(available).count(column)
    if count > 1:
        raise DataError(f"{source} has {count} columns {quoted(column)}; rename all but one")
    if count == 1:
        return
    separators = [s for s in (";", "\t", "|") if len(available) == 1 and s in available[0]]
    if separators:
        advice = f"the columns seem to be separated by {quoted(separators[0])}; save with commas"
    else:
        advice = f"name the right one with --set {option}=NAME"
    raise DataError(
        f"{source} has no column {quoted(column)}{did_you_mean(column, available)}; "
        f"there are {listing([quoted(a) for a in available]) or 'none'}; {advice}"
    )


def _read_file(
    path: Path, columns: Columns, labels: LabelUse, label_of: Callable[[str], Any]
) -> RawTable:
    """Read the columns of a whole file."""
    pick = partial(_pick, columns=columns, labels=labels)
    rows = [row for block in read_blocks(path, pick) for row in block.rows]
    values = [list(column) for column in zip(*(cells for _, cells in rows), strict=True)]
    known = file_format(path)
    if len(values) > 1 and known is not None and known.is_csv:
        values[1] = [label_of(cell) for cell in values[1]]
    return _raw([number for number, _ in rows], values)


def _raw(rows: list[int], values: list[list[Any]]) -> RawTable:
    """Return the columns that `_pick` chose; there are none of them where there are no rows."""
    return RawTable(
        rows=rows,
        texts=values[0] if values else [],
        labels=values[1] if len(values) > 1 else None,
        names=values[2] if len(values) > 2 else None,
    )


def csv_label(text: str) -> str | float:
    """Return a CSV file's label; text that stands for a float becomes one.

    pandas writes whole numbers as ``1.0`` and gaps as ``nan`` once a column has a gap.
    """
    is_float = _NUMBER_WITH_POINT.fullmatch(text.strip()) or text.strip() in ("nan", "NaN")
    return float(text) if is_float else text


def _load_hub(name: str) -> Any:
    """Load ``hub:NAME`` or ``hub:NAME:SPLIT`` through the ``datasets`` package."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("hub datasets", "train") from error
    # It tells of every attempt to reach the hub, several lines each; the error says enough.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    dataset_name, _, split = name.removeprefix(HUB).partition(":")
    if not dataset_name:
        raise DataError(f"{name}: no dataset is named; write {HUB}NAME or {HUB}NAME:SPLIT")
    try:
        return datasets.load_dataset(dataset_name, split=split or "train")
    # The package raises errors of a dozen unrelated kinds: of its own, of the hub client, of the
    # network layer. All of them mean that the data cannot be had.
    except Exception as error:
        raise DataError(
            f"cannot load {name} ({first_line(error)}); without the hub, download the data "
            "elsewhere and pass a .parquet, .jsonl or .csv file"
        ) from error


def _stream_hub(name: str, column: str) -> Iterator[tuple[list[str], float]]:
    """Yield texts block by block, as `stream_texts` does; the package keeps them on disk."""
    dataset = _load_hub(name)
    _pick(name, dataset.column_names, Columns(text=column), "ignored")
    values = dataset[column]
    for start in range(0, len(values), BLOCK_ROWS):
        cells = values[start : start + BLOCK_ROWS]
        places = (place(name, row) for row in range(start + 1, start + 1 + len(cells)))
        texts = [clean_text(c, where, column) for c, where in zip(cells, places, strict=True)]
        yield texts, min(1.0, (start + BLOCK_ROWS) / len(values))


def _read_hub(name: str, columns: Columns, labels: LabelUse) -> RawTable:
    """Read the columns of ``hub:NAME`` or ``hub:NAME:SPLIT``."""
    dataset = _load_hub(name)
    picked = _pick(name, dataset.column_names, columns, labels)
    values = [list(dataset[column]) for column in picked]
    raw = _raw(list(range(1, len(values[0]) + 1)), values)
    class_names = getattr(dataset.features[picked[1]], "names", None) if len(picked) > 1 else None
    if raw.labels is None or class_names is None:
        return raw
    # A ClassLabel marks a hidden label with -1; as an index that would name the last class.
    known = [None if value is None or value < 0 else value for value in raw.labels]
    names = ["?" if value is None else class_names[value] for value in known]
    return RawTable(raw.rows, raw.texts, known, names)
