"""The rows of CSV, TSV, JSONL and Parquet files, block by block, in constant memory.

The text formats may be compressed as ``.gz`` or ``.zst``. Whatever is wrong ends in a ``DataError``
of one line that names the file and the line or row.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, BinaryIO

from nanonet.core.errors import DataError, MissingExtraError
from nanonet.core.registry import did_you_mean
from nanonet.tasks.labels import place, quoted

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
COMPRESSIONS = {"": "Parquet", ".gz": "gzip", ".zst": "zstd"}
SUPPORTED = ".csv, .tsv, .jsonl, .ndjson (each also as .gz and .zst) and .parquet"
BLOCK_ROWS = 4096
PARQUET_ROWS = 1024  # read at once
BLOCK_CHARACTERS = 2**23  # of the chosen columns: bounds memory where texts are long
_FILES_COMPARED = 1000

Row = tuple[int, tuple[Any, ...]]  # line (text files) or row, from 1; the chosen columns' values
# Given a source's name and its columns, returns the names of those to read, at least one.
Pick = Callable[[str, Sequence[str]], list[str]]


@dataclass(frozen=True)
class FileFormat:
    """A file's kind of table (one of ``SUFFIXES``) and compression ("", ".gz" or ".zst")."""

    suffix: str
    compression: str

    @property
    def delimiter(self) -> str:
        """What separates the fields of a CSV or TSV file."""
        return "\t" if self.suffix == ".tsv" else ","

    @property
    def is_csv(self) -> bool:
        """Whether it is a file with a header line and nothing but text in its fields."""
        return self.suffix in (".csv", ".tsv")


@dataclass(frozen=True)
class Block:
    """Consecutive rows, and which fraction of the source has been read after them (0: unknown)."""

    rows: list[Row]
    fraction: float


def file_format(path: str | Path) -> FileFormat | None:
    """Return a file's format by its name, None where it is not supported."""
    name = Path(path).name.lower()
    compression = next((c for c in (".gz", ".zst") if name.endswith(c)), "")
    suffix = Path(name.removesuffix(compression)).suffix
    if suffix not in SUFFIXES or (compression and suffix == ".parquet"):
        return None
    return FileFormat(suffix, compression)


def read_blocks(
    path: Path, pick: Pick, gaps: bool = False, characters: int | None = None
) -> Iterator[Block]:
    """Yield the rows of a file in blocks of at most ``BLOCK_ROWS``, cut where they always are.

    Only the columns that ``pick`` chooses are read; values are as the format gives them. With
    ``gaps``, a line of JSON may lack all but one of them, whose values are None then. A block also
    ends after so many ``characters`` (None: ``BLOCK_CHARACTERS``). Raises
    ``DataError`` for what is no such file or a broken row, ``MissingExtraError`` where Parquet or
    ``.zst`` needs a package that is not installed.
    """
    _refuse_unusable(path)
    known = file_format(path)
    if known is None:
        raise DataError(f"{path}: unknown file type; supported are {SUPPORTED}")
    try:
        with _open_rows(path, known, pick, gaps) as (rows, fraction):
            while block := _take(rows, characters):
                yield Block(block, fraction(block[-1][0]))
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        raise _damaged(path, known, error) from error


def arriving_blocks(
    stream: BinaryIO,
    source: str,
    pick: Pick,
    pause: float | None = None,
    gaps: bool = False,
    characters: int | None = None,
) -> Iterator[Block]:
    """Yield the rows of a JSONL stream in blocks, as `read_blocks` does for a file.

    After ``pause`` seconds without another row, a block ends early. Rows before a broken line are
    yielded before the ``DataError``.
    """
    arrived: Queue[Row | Exception | None] = Queue(BLOCK_ROWS)
    ended: list[Exception | None] = []

    def read() -> None:
        try:
            for row in _jsonl_rows(stream, source, pick, gaps):
                arrived.put(row)
            arrived.put(None)
        except Exception as error:
            arrived.put(error)

    def until_pause() -> Iterator[Row]:
        item = arrived.get()
        while isinstance(item, tuple):
            yield item
            try:
                item = arrived.get(timeout=pause)
            except Empty:
                return
        ended.append(item)

    # No system-independent call tells whether a pipe holds another line; a thread can wait for it.
    Thread(target=read, daemon=True).start()
    while not ended:
        rows = _take(until_pause(), characters)
        if rows:
            yield Block(rows, 0.0)
    if ended[0] is not None:
        raise ended[0]


@contextmanager
def decompressed(raw: BinaryIO, compression: str) -> Iterator[Iterable[bytes]]:
    """Yield the lines of an open file as it was before compression."""
    if compression == ".gz":
        with gzip.GzipFile(fileobj=raw) as stream:
            yield stream
    elif compression == ".zst":
        # pyarrow's reader refuses a truncated file, which that of zstandard takes for its end.
        pyarrow = need_pyarrow("reading .zst files")
        with pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd") as stream:
            yield io.BufferedReader(stream)
    else:
        yield raw


@contextmanager
def compressed(raw: BinaryIO, compression: str) -> Iterator[BinaryIO]:
    """Yield a stream that writes into an open file what it is given, compressed."""
    if compression == ".gz":
        # Neither name nor time: the same rows give the same bytes.
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as stream:
            yield stream  # type: ignore[misc]  # a BinaryIO in all that is used of it
    elif compression == ".zst":
        pyarrow = need_pyarrow("writing .zst files")
        with pyarrow.CompressedOutputStream(pyarrow.PythonFile(raw, mode="w"), "zstd") as stream:
            yield stream
    else:
        yield raw


def need_pyarrow(feature: str) -> Any:
    """Import pyarrow with its Parquet module; raise ``MissingExtraError`` where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(feature, "parquet") from error
    return pyarrow


def first_line(error: Exception) -> str:
    """Return the first line of an error of another package, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _take(rows: Iterator[Row], characters: int | None) -> list[Row]:
    """Return the rows of the next block, none at the end."""
    block: list[Row] = []
    left = BLOCK_CHARACTERS if characters is None else characters
    for row in rows:
        block.append(row)
        left -= sum(map(_characters, row[1]))
        if len(block) == BLOCK_ROWS or left <= 0:
            break
    return block


def _characters(value: Any) -> int:
    """Return the length of a text, or of a list of texts."""
    if isinstance(value, list):
        return sum(len(part) for part in value if isinstance(part, str))
    return len(value) if isinstance(value, str) else 0


def _damaged(path: Path, known: FileFormat, error: Exception) -> DataError:
    return DataError(
        f"{path} is no {COMPRESSIONS[known.compression]} file or a damaged one "
        f"({first_line(error)}); make it again"
    )


def _refuse_unusable(path: Path) -> None:
    """Raise ``DataError`` unless ``path`` is a file with something in it."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        others: list[str] = []
        with suppress(OSError, ValueError):
            others = [p.name for p in islice(path.parent.iterdir(), _FILES_COMPARED)]
        raise DataError(
            f"no such file: {path}{did_you_mean(path.name, others)}; give a file "
            f"({SUPPORTED}) or hub:NAME"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if path.is_dir():
        raise DataError(f"{path} is a folder; give a file inside it")
    if size == 0:
        raise DataError(f"{path} is empty; give a file with at least one row")


@contextmanager
def _open_rows(
    path: Path, known: FileFormat, pick: Pick, gaps: bool
) -> Iterator[tuple[Iterator[Row], Callable[[int], float]]]:
    """Yield a file's rows, and what tells the fraction read after the row of a number."""
    if known.suffix == ".parquet":
        pyarrow = need_pyarrow("reading Parquet")
        try:
            # As a whole, neither the file nor a row group is ever in memory.
            file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise _damaged(path, known, error) from error
        with file:
            rows = _parquet_rows(file, str(path), pick, pyarrow)
            yield rows, lambda number: number / file.metadata.num_rows
        return
    with path.open("rb") as raw, decompressed(raw, known.compression) as stream:
        size = path.stat().st_size
        if known.is_csv:
            rows = _csv_rows(stream, str(path), known.delimiter, pick)
        else:
            rows = _jsonl_rows(stream, str(path), pick, gaps)
        yield rows, lambda _: raw.tell() / size


def _decoded_lines(stream: Iterable[bytes], source: str) -> Iterator[str]:
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


def _csv_lines(
    stream: Iterable[bytes], source: str, delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line where the row starts, fields) for every row that is not blank."""
    # The default of 131,072 characters a field is less than a long document. There is no other
    # way to raise it than for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    reader = csv.reader(_decoded_lines(stream, source), delimiter=delimiter, strict=True)
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


def _csv_rows(stream: Iterable[bytes], source: str, delimiter: str, pick: Pick) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file with a header."""
    lines = _csv_lines(stream, source, delimiter)
    header = [name.strip() for name in next(lines, (0, []))[1]]
    if not header:
        raise DataError(f"{source} has only blank lines; give a header and at least one row")
    at = [header.index(column) for column in pick(source, header)]
    for line, fields in lines:
        if len(fields) != len(header):
            raise DataError(
                f"{place(source, line)}: {len(fields)} fields where the header has {len(header)}; "
                f"put a field that holds {quoted(delimiter)} in double quotes"
            )
        yield line, tuple(fields[column] for column in at)


def _jsonl_rows(
    stream: Iterable[bytes], source: str, pick: Pick, gaps: bool = False
) -> Iterator[Row]:
    """Yield the rows of a file with one JSON object per line; the first one says which keys."""
    first, picked = 0, list[str]()
    keys: set[str] = set()  # those that were asked about
    for number, line in enumerate(_decoded_lines(stream, source), start=1):
        if not line.strip():
            continue
        record = _json_object(line, place(source, number))
        if not picked:
            first, picked, keys = number, pick(place(source, number), list(record)), set(record)
        missing = [key for key in picked if key not in record]
        if missing and (not gaps or len(missing) == len(picked)):
            keys_wanted = " or ".join(map(quoted, missing if gaps else missing[:1]))
            raise DataError(f"{place(source, number)}: no key {keys_wanted}; add it to this line")
        if not record.keys() <= keys:
            keys |= set(record)
            added = set(pick(place(source, number), list(record))) - set(picked)
            if added:
                raise DataError(
                    f"{place(source, number)}: has the key {quoted(min(added))}, which line "
                    f"{first} has not; give it to every line"
                )
        yield number, tuple(record.get(key) for key in picked)


def _json_object(line: str, where: str) -> dict[str, Any]:
    """Return the object of a line."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: broken JSON at character {error.pos + 1} ({error.msg}); write one JSON "
            "object per line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: unreadable JSON ({error})") from error
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: expected a JSON object but found {type(record).__name__}; write lines such "
            'as {"text": "..."}'
        )
    return record


def _parquet_rows(file: Any, source: str, pick: Pick, pyarrow: Any) -> Iterator[Row]:
    """Yield the rows of an open Parquet file."""
    done = 0
    picked = pick(source, file.schema_arrow.names)
    try:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=picked):
            columns = [_values(batch.column(name), name, source, done) for name in picked]
            yield from enumerate(zip(*columns, strict=True), start=done + 1)
            done += batch.num_rows
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise _damaged(Path(source), FileFormat(".parquet", ""), error) from error


def _values(column: Any, name: str, source: str, before: int) -> list[Any]:
    """Return a column's values as Python objects."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        for number, value in enumerate(column, start=before + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{place(source, number)}, column {quoted(name)}: the byte "
                    f"0x{error.object[error.start]:02X} is not UTF-8; write the file again"
                ) from error
        raise
