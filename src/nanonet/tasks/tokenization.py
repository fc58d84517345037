"""Texts to token ids, and rows of tokens to chunks of like length. No torch.

Training and serving use the same code, so that a text is cut the same way in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from nanonet.core.errors import DataError

Ids = NDArray[np.int64]
UNKNOWN_SHARE_LIMIT = 0.1  # of the tokens; above it the tokenizer does not know the script
TEXTS_AT_ONCE = 512  # an encoding takes about 10 kB for a text of 50 tokens, its ids 400 bytes
TRUNCATED_SHARE_LIMIT = 0.05  # of the texts


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of texts, and what the tokenizer lost.

    ``ids[i]`` has shape (length of text i,), special tokens included, at most ``max_length``.
    """

    ids: list[Ids]
    truncated: int  # texts that were longer than max_length
    unknown: int  # tokens that the tokenizer does not know
    tokens: int  # of all texts, special ones not counted

    @property
    def unknown_share(self) -> float:
        """Unknown tokens per token, special ones not counted."""
        return self.unknown / max(self.tokens, 1)

    @property
    def lengths(self) -> Ids:
        """Tokens per text, shape (n,)."""
        return np.fromiter((len(row) for row in self.ids), dtype=np.int64, count=len(self.ids))


class TextTokenizer:
    """A ``tokenizers`` tokenizer with our truncation and no padding of its own.

    MiniLM's ``tokenizer.json`` bakes in truncation and padding to 128 tokens; both are replaced.

    Args:
        tokenizer_json: the content of a ``tokenizer.json``.
        max_length: tokens of one text at most, special tokens included.
    """

    def __init__(self, tokenizer_json: str, max_length: int) -> None:
        self.max_length = max_length
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        self._unknown = unknown_id(self._tokenizer)

    @property
    def size(self) -> int:
        """Number of tokens that it knows, special ones included."""
        return int(self._tokenizer.get_vocab_size())

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """Return the token ids of ``texts``, in order; faster than `encode`, which counts too.

        Raises:
            DataError: see `encode`.
        """
        ids: list[Ids] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            encodings = self._encodings(texts[start : start + TEXTS_AT_ONCE])
            ids += [np.array(e.ids, dtype=np.int64) for e in encodings]
        return ids

    def _encodings(self, texts: Sequence[str]) -> list[Encoding]:
        try:
            return self._tokenizer.encode_batch_fast(list(texts))
        except BaseException as error:
            # A panic of the Rust library is no Exception and would pass through every handler.
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                reason = " ".join(str(error).split())
                raise DataError(f"the tokenizer fails on these texts: {reason}") from None
            raise

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the token ids of ``texts``, in order, and what was lost of them.

        Raises:
            DataError: the tokenizer fails, as one with a damaged ``tokenizer.json`` may.
        """
        ids: list[Ids] = []
        truncated = tokens = unknown = 0
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            encodings = self._encodings(texts[start : start + TEXTS_AT_ONCE])
            rows = [np.array(e.ids, dtype=np.int64) for e in encodings]
            truncated += sum(1 for e in encodings if e.overflowing)
            tokens += sum(map(len, rows)) - sum(sum(e.special_tokens_mask) for e in encodings)
            unknown += sum(int((row == self._unknown).sum()) for row in rows)
            ids += rows
        return EncodedTexts(ids, truncated, unknown, tokens)

    def to_json(self) -> str:
        """Return the tokenizer as ``tokenizer.json`` content, with our truncation."""
        return str(self._tokenizer.to_str())


def unknown_id(tokenizer: Tokenizer) -> int:
    """Return the id of the unknown token, or -1 (byte-level tokenizers have none)."""
    token = getattr(tokenizer.model, "unk_token", None)
    found = tokenizer.token_to_id(token) if token else None
    return -1 if found is None else int(found)


def special_ids(tokenizer: Tokenizer) -> tuple[Ids, Ids]:
    """Return the special tokens that stand before and after a text."""
    encoding = tokenizer.encode("a")
    special = np.asarray(encoding.special_tokens_mask, dtype=bool)
    ids = np.asarray(encoding.ids, dtype=np.int64)
    own = np.flatnonzero(~special)
    first, last = (own[0], own[-1]) if len(own) else (len(ids), len(ids) - 1)
    return ids[:first], ids[last + 1 :]


class Losses(Protocol):
    """What the tokenizer lost of texts."""

    @property
    def ids(self) -> Sequence[Ids]:
        """Token ids of the texts."""

    @property
    def truncated(self) -> int:
        """Texts that were cut."""

    @property
    def unknown_share(self) -> float:
        """Unknown tokens per token."""


def encoding_warnings(source: str, encoded: Losses, max_length: int) -> list[str]:
    """Return what the tokenizer lost of the texts of ``source``, where it is much."""
    warnings = []
    count = len(encoded.ids)
    if encoded.truncated > TRUNCATED_SHARE_LIMIT * count:
        warnings.append(
            f"{source}: {encoded.truncated} of {count} texts are longer than {max_length} tokens"
            " and were cut there (data.max_length)"
        )
    if encoded.unknown_share > UNKNOWN_SHARE_LIMIT:
        warnings.append(unknown_warning(source, encoded.unknown_share))
    return warnings


def unknown_warning(source: str, share: float) -> str:
    """Return what to say where the tokenizer does not know this share of the tokens."""
    return (
        f"{source}: the tokenizer does not know {share:.0%} of the tokens; the"
        " backbone was not trained on this script, choose another"
    )


def length_quantiles(lengths: Sequence[int] | Ids, count: int = 64) -> list[int]:
    """Return ``count`` token lengths that stand for all: what a manifest carries of its texts."""
    return quantiles_of_counts(np.bincount(np.asarray(lengths)), count)


def quantiles_of_counts(counts: Ids, count: int = 64) -> list[int]:
    """Return what `length_quantiles` does, given how many texts have 0, 1, 2, .. tokens, (n,)."""
    at = (np.arange(count) + 0.5) / count
    places = np.rint(at * (counts.sum() - 1))  # of the nearest text, as numpy's "nearest" has it
    return [int(n) for n in np.searchsorted(np.cumsum(counts), places, side="right")]


def length_chunks(
    lengths: Sequence[int] | Ids, max_padding: float, token_budget: int | None = None
) -> list[Ids]:
    """Group rows of like length, so that little is padded.

    Args:
        lengths: tokens per row, shape (n,).
        max_padding: padding tokens per real token that a chunk may hold at most.
        token_budget: padded tokens per chunk at most (a single longer row stands alone).

    Returns:
        Row indexes per chunk; longest rows first, every row once.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    chunks: list[Ids] = []
    start, real = 0, 0
    for i, row in enumerate(order):
        longest = int(sizes[order[start]])
        padded = (i - start + 1) * longest
        grown = real + int(sizes[row])
        too_loose = padded > (1.0 + max_padding) * grown
        too_big = token_budget is not None and padded > token_budget
        if i > start and (too_loose or too_big):
            chunks.append(order[start:i])
            start, grown = i, int(sizes[row])
        real = grown
    if len(order):
        chunks.append(order[start:])
    return chunks


def pad(ids: Sequence[Ids]) -> tuple[Ids, Ids]:
    """Return ``(input_ids, attention_mask)``, both (rows, longest), padded on the right with 0.

    The id 0 in padding is never read: the mask hides it.
    """
    longest = max(len(row) for row in ids)
    input_ids = np.zeros((len(ids), longest), dtype=np.int64)
    mask = np.zeros((len(ids), longest), dtype=np.int64)
    for i, row in enumerate(ids):
        input_ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return input_ids, mask
