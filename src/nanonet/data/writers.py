"""Write tables as CSV, TSV, JSONL or Parquet files, whole or not at all."""

import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from nanonet.core.errors import DataError
from nanonet.core.files import new_file
from nanonet.data.formats import (
    SUPPORTED,
    FileFormat,
    compressed,
    file_format,
    first_line,
    need_pyarrow,
)
from nanonet.tasks.labels import quoted

_ROW_GROUP_ROWS = 2**16
_ROW_GROUP_BYTES = 2**26

Table = Mapping[str, Sequence[object]]
# str, int, float or bool; a list of one kind; a record of several.
Kind = type | list[Any] | Mapping[str, Any]
Types = Mapping[str, Kind]  # of each column


def write_table(path: str | Path, columns: Table, types: Types | None = None) -> None:
    """Write columns of equal length n to ``path``, in the format of its name.

    The file appears complete or not at all, and replaces an older one. ``types`` says what a
    Parquet file's columns hold; without it, their values do, and no rows have no types. In CSV,
    lists and records are written as JSON. Raises
    ``DataError`` when the format is unknown, the columns differ in length, a value does not fit
    the format, or the file cannot be written; ``MissingExtraError`` for Parquet or ``.zst``
    without pyarrow.
    """
    path = Path(path)
    known = checked_format(path)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        found = ", ".join(f"{name} ({length})" for name, length in lengths.items())
        raise DataError(f"{path}: columns of equal length are needed, got {found or 'none'}")
    with _new_file(path) as part:
        if known.suffix == ".parquet":
            _write_parquet(part, path, columns, types)
            return
        with (
            part.open("wb") as raw,
            compressed(raw, known.compression) as stream,
            io.TextIOWrapper(stream, encoding="utf-8", newline="") as text,
        ):
            if known.is_csv:
                _write_csv(text, path, columns, known.delimiter)
            else:
                _write_jsonl(text, columns)


def join_tables(parts: Sequence[Path], path: Path) -> None:
    """Join files into ``path`` in constant memory; it appears complete or not at all.

    `write_table` made the parts, at least one, with the same columns and in the format of
    ``path``, but not compressed. Raises what `write_table` raises.
    """
    known = checked_format(path)
    with _new_file(path) as new:
        if known.suffix == ".parquet":
            _join_parquet(parts, new)
            return
        with new.open("wb") as raw, compressed(raw, known.compression) as stream:
            for number, part in enumerate(parts):
                with part.open("rb") as file:
                    if known.is_csv and number > 0:
                        file.readline()  # the header again
                    shutil.copyfileobj(file, stream)


def checked_format(path: Path) -> FileFormat:
    """Return the format in which ``path`` would be written.

    Raises ``DataError`` for an unknown one, ``MissingExtraError`` for one without its package.
    """
    known = file_format(path)
    if known is None:
        raise DataError(f"{path}: unknown file type; supported are {SUPPORTED}")
    if known.suffix == ".parquet":
        need_pyarrow("writing Parquet")
    if known.compression == ".zst":
        need_pyarrow("writing .zst files")
    return known


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Yield the temporary file that becomes ``path``; failures to write become ``DataError``."""
    try:
        with new_file(path) as part:
            yield part
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise DataError(
            f"cannot write {path}: a value holds half of a surrogate pair, which is no "
            "character; remove it"
        ) from error


def _write_csv(stream: TextIO, path: Path, columns: Table, delimiter: str) -> None:
    # Every text is quoted: Python before 3.13 leaves a lone "\r" bare, and then cannot read it.
    writer = csv.writer(
        stream, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
    )
    writer.writerow(columns)
    for number, row in enumerate(zip(*columns.values(), strict=True), start=1):
        for name, value in zip(columns, row, strict=True):
            if isinstance(value, str) and "\0" in value:
                raise DataError(
                    f"cannot write {path}: row {number}, column {quoted(name)} holds a NUL "
                    "character, which CSV cannot; write .jsonl or .parquet"
                )
        writer.writerow([_csv_cell(value) for value in row])


def _csv_cell(value: object) -> object:
    is_nested = isinstance(value, list | Mapping)
    return json.dumps(value, ensure_ascii=False) if is_nested else value


def _write_jsonl(stream: TextIO, columns: Table) -> None:
    for row in zip(*columns.values(), strict=True):
        record = dict(zip(columns, row, strict=True))
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_parquet(part: Path, path: Path, columns: Table, types: Types | None) -> None:
    pyarrow = need_pyarrow("writing Parquet")
    schema = types and pyarrow.schema([(n, _arrow_type(types[n], pyarrow)) for n in columns])
    values = {name: list(column) for name, column in columns.items()}
    try:
        table = pyarrow.table(values, schema=schema)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"cannot write {path}: a column mixes kinds of values ({first_line(error)}); "
            "make each column one kind"
        ) from error
    pyarrow.parquet.write_table(table, part, compression="zstd")


def _arrow_type(kind: Kind, pyarrow: Any) -> Any:
    if isinstance(kind, list):
        return pyarrow.list_(_arrow_type(kind[0], pyarrow))
    if isinstance(kind, Mapping):
        return pyarrow.struct([(name, _arrow_type(k, pyarrow)) for name, k in kind.items()])
    return {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        bool: pyarrow.bool_(),
    }[kind]


def _join_parquet(parts: Sequence[Path], new: Path) -> None:
    """Copy the rows; small row groups become few large ones."""
    pyarrow = need_pyarrow("writing Parquet")
    schema = pyarrow.parquet.read_schema(parts[0])
    waiting: list[Any] = []
    with pyarrow.parquet.ParquetWriter(new, schema, compression="zstd") as writer:
        for part in parts:
            with pyarrow.parquet.ParquetFile(part) as file:
                waiting.append(file.read())
            is_full = (
                sum(table.num_rows for table in waiting) >= _ROW_GROUP_ROWS
                or sum(table.nbytes for table in waiting) >= _ROW_GROUP_BYTES
            )
            if is_full or part == parts[-1]:
                writer.write_table(pyarrow.concat_tables(waiting))
                waiting = []
