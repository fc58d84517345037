"""Rows of tokens in a file, of which only what is asked for is ever in memory. No torch."""

import io
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import IO, Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nanonet.core.machine import cache_folder
from nanonet.tasks.tokenization import Ids

KEPT_BYTES = 2**22  # of a spool in memory; beyond, its file is on disk
BLOCK = 2**16  # numbers read at once
MOST_SHUFFLED = 2**20  # rows that are put into a random order as a whole: 8 MB


class Spool:
    """Numbers written one after the other: in memory while they are few, then in a nameless file.

    The file is in the cache folder (see `cache_folder`), else in the system's temporary folder, and
    is gone with the process. It is read, not mapped: pages of a mapped file count as the process's
    own memory once they are touched.

    Args:
        dtype: of the numbers.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._size = 0
        self._file: IO[bytes] = io.BytesIO()

    def __len__(self) -> int:
        return self._size

    def append(self, numbers: NDArray[Any]) -> None:
        """Add numbers (n,) at the end.

        Raises:
            OSError: the disk is full.
        """
        data = numbers.astype(self.dtype, copy=False).tobytes()
        end = self._size * self.dtype.itemsize
        if isinstance(self._file, io.BytesIO) and end + len(data) > KEPT_BYTES:
            kept = self._file.getvalue()
            self._file = tempfile.TemporaryFile(dir=_scratch_folder())  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            self._file.write(kept)
        self._file.seek(end)
        self._file.write(data)
        self._size += len(numbers)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return numbers start .. stop."""
        self._file.seek(start * self.dtype.itemsize)
        return np.frombuffer(self._file.read((stop - start) * self.dtype.itemsize), self.dtype)

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield all numbers in order, a block at a time."""
        for start in range(0, self._size, BLOCK):
            yield self.read(start, min(start + BLOCK, self._size))


class StoredRows(Sequence[Ids]):
    """Token ids of texts, read from a file when they are asked for.

    Args:
        tokens: of all texts, one after the other.
        ends: where each text begins, and where the last one ends, (n + 1,).
        places: which of the texts these rows are, (m,); None: all.
    """

    def __init__(self, tokens: Spool, ends: Spool, places: Ids | None = None) -> None:
        self._tokens = tokens
        self._ends = ends
        self._places = places

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._places is None else len(self._places)

    @overload
    def __getitem__(self, index: int) -> Ids: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredRows": ...
    def __getitem__(self, index: int | slice) -> "Ids | StoredRows":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = range(len(self))[index] if self._places is None else int(self._places[index])
        start, stop = self._ends.read(place, place + 2)
        return self._tokens.read(start, stop).astype(np.int64)

    def take(self, rows: Ids) -> "StoredRows":
        """Return some of the rows, (m,), in that order."""
        places = rows if self._places is None else self._places[rows]
        return StoredRows(self._tokens, self._ends, places)

    @cached_property
    def lengths(self) -> Ids:
        """Tokens of each row, (n,)."""
        places = np.arange(len(self)) if self._places is None else self._places
        lengths = np.empty(len(places), dtype=np.int64)
        for start in range(0, len(self._ends) - 1, BLOCK):
            sizes = np.diff(self._ends.read(start, min(start + BLOCK + 1, len(self._ends))))
            here = (places >= start) & (places < start + len(sizes))
            lengths[here] = sizes[places[here] - start]
        return lengths


def random_rows(n: int, count: int, seed: int) -> Ids:
    """Return ``count`` of n rows, each at most once, in little memory where n is large."""
    generator = np.random.default_rng((seed, n))
    if n <= MOST_SHUFFLED or count >= n:
        return generator.permutation(n)[:count]
    found = np.empty(0, dtype=np.int64)
    while len(found) < min(count, n):
        found = np.union1d(found, generator.integers(n, size=min(count, n) - len(found)))
    return generator.permutation(found)  # the union is sorted, and the first rows are no sample


def _scratch_folder() -> str | None:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None
    return str(folder)
