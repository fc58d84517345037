"""Checks on texts and labels: single values, duplicates, leaks and fingerprints.

The functions return what they find; only what cannot be used at all raises ``DataError``.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.errors import DataError
from nanonet.tasks.labels import Label, LabelSet, quoted, spot

if TYPE_CHECKING:
    # The readers use the checks on single values, so this import would run in a circle.
    from nanonet.data.readers import TextTable

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def clean_text(value: Any, where: str, column: str, what: str = "text") -> str:
    """Return ``value`` as ``str``, and ``""`` for a missing one (None or NaN).

    Raises ``DataError`` naming ``where`` and ``column`` when the value is not text.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{where}, column {quoted(column)}: expected {what} but found "
            f"{type(value).__name__} {quoted(value)}; convert it to text"
        )
    # JSON can spell half of a surrogate pair, which would fail in the tokenizer, far from here.
    if not value.isascii() and _HALF_CHARACTER.search(value):
        raise DataError(
            f"{where}, column {quoted(column)}: {what} holds half of a surrogate pair, "
            "which is no character; remove it"
        )
    return str(value)


def clean_name(value: Any, where: str, column: str) -> str:
    """Return a label name without outer blanks; raise ``DataError`` if it is missing or no text."""
    name = clean_text(value, where, column, "a label name").strip()
    if not name:
        raise DataError(f"{where}, column {quoted(column)}: no label name; fill it in")
    return name


def clean_label(value: Any, where: str, column: str) -> Label:
    """Return a label as ``int``, or as ``str`` without outer blanks.

    A whole float such as 1.0 counts as a number. Raises ``DataError`` naming ``where`` and
    ``column`` for a missing label, a truth value, a fraction or anything else.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        value = clean_text(value, where, column, "a label").strip() or None
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    cell = f"{where}, column {quoted(column)}"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{cell}: no label; label this row or remove it")
    if isinstance(value, list | tuple | set | np.ndarray):
        raise DataError(
            f"{cell}: the label {quoted(value)} is a list; several labels per text are for nanonet"
            " train --task multilabel"
        )
    if isinstance(value, bool):
        raise DataError(f"{cell}: the label is the truth value {value}; write 0 and 1, or words")
    raise DataError(f"{cell}: the label {quoted(value)} must be a whole number or a word")


def normalize_text(text: str) -> str:
    """Return the form in which two texts count as copies of each other.

    Unicode NFKC, case folded, every run of white space one blank, none at the ends.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding can leave an accent apart from its letter; composing again makes the form stable.
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def conflicting_duplicates(texts: Sequence[str], labels: Sequence[Label]) -> list[tuple[int, int]]:
    """Return (first, later) indexes for each copy whose label differs from the first one's."""
    first: dict[str, int] = {}
    pairs = []
    for i, text in enumerate(texts):
        j = first.setdefault(normalize_text(text), i)
        if labels[j] != labels[i]:
            pairs.append((j, i))
    return pairs


def duplicate_count(texts: Sequence[str]) -> int:
    """Return how many texts are copies of an earlier one."""
    return len(texts) - len({normalize_text(text) for text in texts})


def text_hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Return 64-bit hashes of normalised texts, sorted: enough to find a text again, no more."""
    return np.sort(hashes_of(texts))


def hashes_of(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Return `text_hashes` in the order of the texts, (n,)."""
    digests = (
        hashlib.blake2b(normalize_text(text).encode(), digest_size=8).digest() for text in texts
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")


def fingerprint(*tables: "TextTable") -> str:
    """Return the SHA-256 (64 hex digits) of the texts and labels, in order, of all tables.

    The same data read from CSV and from Parquet has the same fingerprint. Names, row numbers and
    the source are left out.
    """
    digest = hashlib.sha256()
    for table in tables:
        digest.update(framed([headline(len(table.texts), table.labels is not None)]))
        digest.update(framed(table.texts))
        digest.update(framed(str(label) for label in table.labels or ()))
    return digest.hexdigest()


def headline(count: int, labeled: bool) -> str:
    """Return what comes before a table's texts in what its fingerprint is made of."""
    return f"{count} {'labeled' if labeled else 'unlabeled'}"


def framed(parts: Iterable[str]) -> bytes:
    """Return parts each with its length, so that no two different lists give the same bytes."""
    encoded = (part.encode("utf-8") for part in parts)
    return b"".join(len(data).to_bytes(8, "big") + data for data in encoded)


def check_labeled(table: "TextTable", label_set: LabelSet) -> list[str]:
    """Return warnings, one line each, about a labelled table of n rows.

    Raises ``DataError`` when the table has no labels, one that ``label_set`` does not know, or
    only a single class.
    """
    if table.labels is None:
        raise DataError(f"{table.source} has no labels; add a label column")
    ids = label_set.encode(table.labels, table.source, table.rows)
    if len(set(ids.tolist())) < 2:
        only = label_set.names[int(ids[0])] if len(ids) else "none"
        raise DataError(
            f"{table.source} has only one class ({quoted(only)}); give examples of at least two"
        )
    warnings = []
    conflicts = conflicting_duplicates(table.texts, ids.tolist())
    if conflicts:
        first, later = (spot(table.source, table.rows[i]) for i in conflicts[0])
        warnings.append(
            f"{table.source}: {_count(len(conflicts), 'copy', 'copies')} of an earlier text with "
            f"another label (first: {first} and {later}); decide on one label"
        )
    copies = duplicate_count(table.texts) - len(conflicts)
    if copies:
        warnings.append(
            f"{table.source}: {_count(copies, 'copy', 'copies')} of an earlier text with the same "
            "label; remove them unless their weight is meant"
        )
    return warnings


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
