"""Read texts and labels from CSV, TSV, JSONL and Parquet files, from the hub and from lists.

Whatever is wrong with the input ends in a ``DataError`` of one line that names the file, the line
or row, and the column. Nothing is repaired silently: the only rows ever left out are empty
unlabelled texts, and those are counted.
"""

import csv
import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from nanonet.core.errors import DataError, MissingExtraError
from nanonet.core.registry import did_you_mean
from nanonet.data.checks import clean_label, clean_name, clean_text
from nanonet.tasks.labels import Label, as_numbers, listing, place, quoted

LabelUse = Literal["required", "optional", "ignored"]

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_SUPPORTED = ".csv, .tsv, .jsonl, .ndjson (each also as .gz) and .parquet"
_HUB = "hub:"
_NUMBER_WITH_POINT = re.compile(r"[+-]?[0-9]+\.[0-9]+")
_FILES_COMPARED = 1000


@dataclass(frozen=True)
class Columns:
    """The column names to read; ``label_name`` is used where it exists."""

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
class _Raw:
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
    name = str(source)
    if name.startswith(_HUB):
        raw = _read_hub(name, columns, labels)
    else:
        raw = _read_file(Path(source), columns, labels)
    return _checked(name, raw, columns, required=labels == "required", keep_empty=keep_empty)


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
    raw = _Raw(list(range(1, len(text_list) + 1)), text_list, label_list, None)
    return _checked(source, raw, Columns(), required=label_list is not None)


def _checked(
    source: str, raw: _Raw, columns: Columns, *, required: bool, keep_empty: bool = False
) -> TextTable:
    """Return the table once every value has been checked."""
    if not raw.texts:
        raise DataError(f"{source} has no rows; give at least one text")
    where = [place(source, row) for row in raw.rows]
    texts = [clean_text(t, w, columns.text, "text") for t, w in zip(raw.texts, where, strict=True)]
    empty = [i for i, text in enumerate(texts) if not text.strip()]
    if len(empty) == len(texts):
        raise DataError(
            f"{source}: column {quoted(columns.text)} is empty in all {len(texts)} rows"
        )
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


def _pick(
    source: str, available: Sequence[str], columns: Columns, labels: LabelUse
) -> tuple[str, str | None, str | None]:
    """Return the names of the text, label and label name columns to read, None where unused."""
    _require(source, available, columns.text, "data.text_column")
    if labels == "ignored" or (labels == "optional" and columns.label not in available):
        return columns.text, None, None
    _require(source, available, columns.label, "data.label_column")
    if columns.label_name in available or columns.label_name != Columns().label_name:
        _require(source, available, columns.label_name, "data.label_name_column")
        return columns.text, columns.label, columns.label_name
    return columns.text, columns.label, None


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


def _read_file(path: Path, columns: Columns, labels: LabelUse) -> _Raw:
    """Read the columns by the file's suffix."""
    source = str(path)
    refuse_unusable(path)
    is_gzip = path.name.lower().endswith(".gz")
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in SUFFIXES or (is_gzip and suffix == ".parquet"):
        raise DataError(f"{source}: unknown file type; supported are {_SUPPORTED}")
    try:
        if suffix == ".parquet":
            return _read_parquet(path, columns, labels)
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as stream:
            if suffix in (".jsonl", ".ndjson"):
                return _read_jsonl(stream, source, columns, labels)
            delimiter = "\t" if suffix == ".tsv" else ","
            return _read_csv(stream, source, delimiter, columns, labels)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{source} is no gzip file or a damaged one; make it again") from error
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}") from error


def refuse_unusable(path: Path) -> None:
    """Raise ``DataError`` unless ``path`` is a file with something in it."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        others: list[str] = []
        with suppress(OSError, ValueError):
            others = [p.name for p in islice(path.parent.iterdir(), _FILES_COMPARED)]
        raise DataError(
            f"no such file: {path}{did_you_mean(path.name, others)}; give a file "
            f"({_SUPPORTED}) or {_HUB}NAME"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if path.is_dir():
        raise DataError(f"{path} is a folder; give a file inside it")
    if size == 0:
        raise DataError(f"{path} is empty; give a file with at least one row")


def decoded_lines(stream: Iterable[bytes], source: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 stream, without the byte order mark that Excel puts first."""
    offset = 0
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{place(source, number)}: the byte 0x{line[error.start]:02X} at byte offset "
                f"{offset + error.start} of the file is not UTF-8; save the file as UTF-8"
            ) from error
        if "\0" in text:
            raise DataError(
                f"{place(source, number)}: a NUL byte at character {text.index(chr(0)) + 1}; "
                "the file is damaged or not plain text; save it again as UTF-8"
            )
        yield text.removeprefix("\ufeff") if number == 1 else text
        offset += len(line)


def csv_rows(
    stream: Iterable[bytes], source: str, delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where the row starts, fields) for every row that is not blank."""
    # The default of 131,072 characters a field is less than a long document. There is no other
    # way to raise it than for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    reader = csv.reader(decoded_lines(stream, source), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = str(error).partition(" - ")[0]
            raise DataError(
                f"{place(source, line)}: broken row ({reason}); look for a quote that is not "
                'closed, and write a quote inside a quoted field twice ("")'
            ) from error
        if fields:
            yield line, fields


def _read_csv(
    stream: Iterable[bytes], source: str, delimiter: str, columns: Columns, labels: LabelUse
) -> _Raw:
    """Read a CSV or TSV file with a header."""
    reader = csv_rows(stream, source, delimiter)
    header = [name.strip() for name in next(reader, (0, []))[1]]
    if not header:
        raise DataError(f"{source} has only blank lines; give a header and at least one row")
    picked = _pick(source, header, columns, labels)
    at = [None if column is None else header.index(column) for column in picked]
    rows: list[int] = []
    cells: list[list[Any]] = [[], [], []]
    for line, fields in reader:
        if len(fields) != len(header):
            raise DataError(
                f"{place(source, line)}: {len(fields)} fields where the header has {len(header)}; "
                f"put a field that holds {quoted(delimiter)} in double quotes"
            )
        rows.append(line)
        for cell, column in zip(cells, at, strict=True):
            if column is not None:
                cell.append(fields[column])
    texts, label_cells, names = cells
    if picked[1] is None:
        return _Raw(rows, texts, None, None)
    return _Raw(rows, texts, [_csv_label(c) for c in label_cells], names if picked[2] else None)


def _csv_label(text: str) -> str | float:
    """Return a CSV label; text that stands for a float becomes one.

    pandas writes whole numbers as ``1.0`` and gaps as ``nan`` once a column has a gap.
    """
    is_float = _NUMBER_WITH_POINT.fullmatch(text.strip()) or text.strip() in ("nan", "NaN")
    return float(text) if is_float else text


def _read_jsonl(stream: Iterable[bytes], source: str, columns: Columns, labels: LabelUse) -> _Raw:
    """Read a file with one JSON object per line."""
    wanted = {columns.text, columns.label, columns.label_name}
    available: dict[str, None] = {}
    rows: list[int] = []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(decoded_lines(stream, source), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place(source, number)}: broken JSON at character {error.pos + 1} "
                f"({error.msg}); write one JSON object per line"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place(source, number)}: unreadable JSON ({error})") from error
        if not isinstance(record, dict):
            raise DataError(
                f"{place(source, number)}: expected a JSON object but found "
                f'{type(record).__name__}; write lines such as {{"{columns.text}": "..."}}'
            )
        available.update(dict.fromkeys(record))
        rows.append(number)
        # Other keys may be large (embeddings, tokens): they are not kept.
        records.append({key: value for key, value in record.items() if key in wanted})
    if not records:
        raise DataError(f"{source} has no rows; give at least one text")
    picked = _pick(source, list(available), columns, labels)
    texts, label_cells, names = (
        None if column is None else _values(source, rows, records, column) for column in picked
    )
    return _Raw(rows, texts or [], label_cells, names)


def _values(source: str, rows: list[int], records: list[dict[str, Any]], key: str) -> list[Any]:
    for row, record in zip(rows, records, strict=True):
        if key not in record:
            raise DataError(f"{place(source, row)}: no key {quoted(key)}; add it to this line")
    return [record[key] for record in records]


def _read_parquet(path: Path, columns: Columns, labels: LabelUse) -> _Raw:
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("reading Parquet", "parquet") from error
    source = str(path)
    try:
        with pq.ParquetFile(path) as file:
            picked = _pick(source, file.schema_arrow.names, columns, labels)
            table = file.read(columns=[column for column in picked if column is not None])
        texts, label_cells, names = (
            None if column is None else list(table.column(column).to_pylist()) for column in picked
        )
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(
            f"{source} is no Parquet file or a damaged one ({_first_line(error)}); make it again"
        ) from error
    return _Raw(list(range(1, table.num_rows + 1)), texts or [], label_cells, names)


def _read_hub(name: str, columns: Columns, labels: LabelUse) -> _Raw:
    """Read ``hub:NAME`` or ``hub:NAME:SPLIT`` through the ``datasets`` package."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("hub datasets", "train") from error
    # It tells of every attempt to reach the hub, several lines each; the error says enough.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    dataset_name, _, split = name.removeprefix(_HUB).partition(":")
    if not dataset_name:
        raise DataError(f"{name}: no dataset is named; write {_HUB}NAME or {_HUB}NAME:SPLIT")
    try:
        dataset = datasets.load_dataset(dataset_name, split=split or "train")
    # The package raises errors of a dozen unrelated kinds: of its own, of the hub client, of the
    # network layer. All of them mean that the data cannot be had.
    except Exception as error:
        raise DataError(
            f"cannot load {name} ({_first_line(error)}); without the hub, download the data "
            "elsewhere and pass a .parquet, .jsonl or .csv file"
        ) from error
    text, label, label_name = _pick(name, dataset.column_names, columns, labels)
    texts = list(dataset[text])
    rows = list(range(1, len(texts) + 1))
    if label is None:
        return _Raw(rows, texts, None, None)
    values = list(dataset[label])
    class_names = getattr(dataset.features[label], "names", None)
    if class_names is None:
        return _Raw(rows, texts, values, list(dataset[label_name]) if label_name else None)
    # A ClassLabel marks a hidden label with -1; as an index that would name the last class.
    values = [None if value is None or value < 0 else value for value in values]
    names = ["?" if value is None else class_names[value] for value in values]
    return _Raw(rows, texts, values, names)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
