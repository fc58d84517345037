"""What a run keeps of its texts; unlabelled ones are read once, and only their tokens are kept.

However many unlabelled texts there are, a block of them is in memory at a time. Their tokens, their
hashes and the bytes that their fingerprint is made of go to files (see `nanonet.tasks.stored`).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.errors import DataError
from nanonet.core.files import new_file
from nanonet.data.checks import fingerprint, framed, hashes_of, headline
from nanonet.data.readers import TextStream
from nanonet.tasks.base import EncodedTable, Row, Window
from nanonet.tasks.stored import Spool, StoredRows
from nanonet.tasks.tokenization import Ids, TextTokenizer, length_quantiles, quantiles_of_counts

HASHES_AT_ONCE = 2**20  # 8 MB


@dataclass(frozen=True)
class TextFacts:
    """What a run keeps of a table's texts beside their tokens.

    Attributes:
        source: where they are from.
        count: how many texts there are.
        fingerprint: see `nanonet.data.checks.fingerprint`.
        hashes: see `nanonet.data.checks.hashes_of`.
        dropped_empty: empty texts that were left out.
    """

    source: str
    count: int
    fingerprint: str
    hashes: Spool
    dropped_empty: int = 0


@dataclass(frozen=True)
class StreamedTexts:
    """Token ids of texts that were read as a stream, and what the tokenizer lost.

    Attributes:
        ids: the rows, in a file.
        truncated: texts that were longer than the tokenizer's ``max_length``.
        unknown_share: unknown tokens per token, special ones not counted.
        token_counts: how often each token occurs, (V,).
        length_counts: how many texts have 0, 1, 2, .. tokens, (max_length + 1,).
        facts: what else is kept of the texts.
    """

    ids: StoredRows
    truncated: int
    unknown_share: float
    token_counts: NDArray[np.int64]
    length_counts: NDArray[np.int64]
    facts: TextFacts


def encode_stream(stream: TextStream, tokenizer: TextTokenizer) -> StreamedTexts:
    """Read a stream to its end and keep its tokens.

    Raises:
        DataError: see `read_table`; or there is no space for the tokens.
    """
    try:
        return _encode(stream, tokenizer)
    except OSError as error:
        raise DataError(
            f"the tokens of {stream.source} could not be kept: {error.strerror or error}; free some"
            " space, or name another folder in NANONET_CACHE"
        ) from None


def _encode(stream: TextStream, tokenizer: TextTokenizer) -> StreamedTexts:
    tokens, ends = Spool(np.uint32), Spool(np.int64)
    hashes, texts_bytes = Spool(np.uint64), Spool(np.uint8)
    token_counts = np.zeros(tokenizer.size, dtype=np.int64)
    length_counts = np.zeros(tokenizer.max_length + 1, dtype=np.int64)
    truncated = known = unknown = empty = 0
    ends.append(np.zeros(1))
    for texts, dropped in stream.blocks():
        empty += dropped
        encoded = tokenizer.encode(texts)
        if texts:
            block = np.concatenate(encoded.ids)
            ends.append(len(tokens) + np.cumsum(encoded.lengths))
            tokens.append(block)
            token_counts += np.bincount(block, minlength=tokenizer.size)
            length_counts += np.bincount(encoded.lengths, minlength=tokenizer.max_length + 1)
        truncated += encoded.truncated
        known, unknown = known + encoded.tokens, unknown + encoded.unknown
        hashes.append(hashes_of(texts))
        texts_bytes.append(np.frombuffer(framed(texts), dtype=np.uint8))
    rows = StoredRows(tokens, ends)
    # The number of texts comes first in what a fingerprint is made of, and is known only now.
    digest = hashlib.sha256(framed([headline(len(rows), labeled=False)]))
    for part in texts_bytes.blocks():
        digest.update(part.tobytes())
    facts = TextFacts(stream.source, len(rows), digest.hexdigest(), hashes, empty)
    share = unknown / max(known, 1)
    return StreamedTexts(rows, truncated, share, token_counts, length_counts, facts)


def facts_of(table: Any, encoded: EncodedTable) -> TextFacts:
    """Return what is kept of a table's texts."""
    if isinstance(encoded.encoded, StreamedTexts):
        return encoded.encoded.facts
    hashes = Spool(np.uint64)
    hashes.append(hashes_of(table.texts))
    return TextFacts(table.source, len(table.texts), fingerprint(table), hashes)


def token_counts(encoded: EncodedTable, size: int) -> NDArray[np.int64]:
    """Return how often each of ``size`` tokens occurs in a table, (size,)."""
    if isinstance(encoded.encoded, StreamedTexts):
        return encoded.encoded.token_counts
    counts = np.zeros(size, dtype=np.int64)
    for row in encoded.encoded.ids:
        np.add.at(counts, _ids(row), 1)
    return counts


def token_lengths(encoded: EncodedTable) -> list[int]:
    """Return the lengths that stand for a table's rows, see `length_quantiles`."""
    if isinstance(encoded.encoded, StreamedTexts):
        return quantiles_of_counts(encoded.encoded.length_counts)
    return length_quantiles([len(row) for row in encoded.encoded.ids])


def text_warnings(facts: Mapping[str, TextFacts]) -> list[str]:
    """Return a warning for empty texts, and for each table that holds texts of the validation."""
    warnings = [
        f"{each.source}: {each.dropped_empty} empty texts left out"
        for each in facts.values()
        if each.dropped_empty
    ]
    if "validation" not in facts:
        return warnings
    validation = facts["validation"]
    held_out = validation.hashes.read(0, validation.count)
    for name, kind in (("labeled", "labelled"), ("unlabeled", "unlabelled")):
        if name not in facts:
            continue
        found = np.zeros(len(held_out), dtype=bool)
        for block in facts[name].hashes.blocks():
            found |= np.isin(held_out, block)
        if shared := int(found.sum()):
            warnings.append(
                f"{shared} texts of {validation.source} are also among the {kind}"
                f" texts of {facts[name].source}: the validation figures are too good"
            )
    return warnings


def write_hashes(path: Path, hashes: Spool) -> None:
    """Write hashes in ascending order.

    Raises:
        OSError: the disk is full or not writable.
    """
    with new_file(path) as temporary, temporary.open("wb") as file:
        for block in _sorted_hashes(hashes):
            file.write(block.astype("<u8").tobytes())


def _sorted_hashes(hashes: Spool) -> Iterator[NDArray[np.uint64]]:
    """Yield 64-bit hashes in ascending order, about `HASHES_AT_ONCE` at a time.

    Hashes spread evenly, so that equal ranges of values hold about the same number of them.
    """
    ranges = len(hashes) // HASHES_AT_ONCE + 1
    width = 2**64 // ranges
    for place in range(ranges):
        low, high = place * width, 2**64 - 1 if place == ranges - 1 else (place + 1) * width - 1
        picked = [b[(b >= np.uint64(low)) & (b <= np.uint64(high))] for b in hashes.blocks()]
        yield np.sort(np.concatenate([np.empty(0, dtype=np.uint64), *picked]))


def _ids(row: Row) -> Ids:
    return row.ids if isinstance(row, Window) else row
