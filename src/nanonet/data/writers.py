"""Write tables as CSV, TSV, JSONL or Parquet files, whole or not at all."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanonet.core.errors import DataError, MissingExtraError
from nanonet.core.files import new_file
from nanonet.tasks.labels import quoted

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

Table = Mapping[str, Sequence[object]]


def write_table(path: str | Path, columns: Table) -> None:
    """Write columns of equal length n to ``path``, in the format of its suffix.

    The file appears complete or not at all, and replaces an older one. Raises ``DataError`` when
    the suffix is unknown, the columns differ in length, a value does not fit the format, or the
    file cannot be written; ``MissingExtraError`` for Parquet without its package.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: unknown file type; supported are {', '.join(SUFFIXES)}")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        found = ", ".join(f"{name} ({length})" for name, length in lengths.items())
        raise DataError(f"{path}: columns of equal length are needed, got {found or 'none'}")
    try:
        with new_file(path) as part:
            if suffix == ".parquet":
                _write_parquet(part, path, columns)
            elif suffix in (".csv", ".tsv"):
                _write_csv(part, path, columns, "\t" if suffix == ".tsv" else ",")
            else:
                _write_jsonl(part, columns)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise DataError(
            f"cannot write {path}: a value holds half of a surrogate pair, which is no "
            "character; remove it"
        ) from error


def _write_csv(part: Path, path: Path, columns: Table, delimiter: str) -> None:
    with part.open("w", encoding="utf-8", newline="") as stream:
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
            writer.writerow(row)


def _write_jsonl(part: Path, columns: Table) -> None:
    with part.open("w", encoding="utf-8", newline="\n") as stream:
        for row in zip(*columns.values(), strict=True):
            record = dict(zip(columns, row, strict=True))
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_parquet(part: Path, path: Path, columns: Table) -> None:
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("writing Parquet", "parquet") from error
    try:
        table = pyarrow.table({name: list(values) for name, values in columns.items()})
    except pyarrow.ArrowException as error:
        raise DataError(
            f"cannot write {path}: a column mixes kinds of values ({str(error).splitlines()[0]}); "
            "make each column one kind"
        ) from error
    pq.write_table(table, part, compression="zstd")
