"""Read documents with sentence labels or reference summaries: Parquet, JSONL and CSV.

A row gives ``sentences`` (a list) or ``text``, and may give ``labels`` (0 or 1 per sentence) or a
``summary`` (text, or a list of sentences). Labels are made from summaries by a greedy search for
the sentences closest to them, and kept in the user's cache.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import DataConfig
from nanonet.core.errors import DataError
from nanonet.core.files import write_json
from nanonet.core.machine import cache_folder
from nanonet.data.checks import clean_text
from nanonet.data.formats import Block, file_format
from nanonet.data.readers import HUB, STDIN, LabelUse, TextTable, open_blocks, refuse_nul
from nanonet.tasks.documents import Document, make_document, split_text
from nanonet.tasks.labels import Label, listing, place, quoted
from nanonet.tasks.rouge import Rouge

# Of a block: a tenth of that of short texts, for a document takes far longer than they do.
BLOCK_CHARACTERS = 2**20
ORACLE_VERSION = 1  # of the search: raise it when its answers change
NO_SENTENCES = "without a sentence"
NO_ANSWER = "without labels or summary"
EMPTY_SUMMARY = "with an empty summary"
NO_OVERLAP = "whose summary has no word in common with the document"
NONE_CHOSEN = "whose labels choose no sentence"


@dataclass(frozen=True)
class DocumentTable(TextTable):
    """Documents, as texts with sentences; all lists have the same length n.

    Attributes:
        labels: each document's sentence labels as a word of digits, such as ``0110``.
        documents: texts and sentences.
        summaries: sentences of each reference; the labelled sentences where none is given.
        left_out: how many rows were left out, by reason.
    """

    documents: list[Document] = field(default_factory=list)
    summaries: list[list[str]] | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    def truth(self) -> NDArray[np.int64]:
        """Return the labels of all sentences of all documents, (S,); -1 without labels."""
        if self.labels is None:
            return np.full(sum(len(d.spans) for d in self.documents), -1, dtype=np.int64)
        digits = "".join(str(word) for word in self.labels)
        return np.fromiter(map(int, digits), dtype=np.int64, count=len(digits))

    def warnings(self) -> list[str]:
        """Return what was left out, in words."""
        return [
            f"{self.source}: {count} document{'s' if count > 1 else ''} {reason} left out"
            for reason, count in self.left_out.items()
        ]


@dataclass(frozen=True)
class _Row:
    """One document as the file gives it."""

    number: int
    document: Document
    labels: list[int] | None
    summary: list[str] | None


def read_documents(
    source: str, columns: DataConfig, language: str, *, labels: LabelUse
) -> DocumentTable:
    """Read documents from a file.

    Args:
        source: a .parquet, .jsonl, .ndjson, .csv or .tsv file.
        columns: names of the columns.
        language: of raw texts.
        labels: ``required``: give labels and references; documents that have none, or none that
            can be used, are left out and counted. ``optional``: the same, if the file has such
            columns. ``ignored``: do not.

    Raises:
        DataError: the file, a row or a value cannot be used, or no document is left.
        MissingExtraError: Parquet, sentence splitting or ROUGE needs a package.
    """
    names = {"sentences": columns.sentences_column, "text": columns.text_column}
    if labels != "ignored":
        names |= {"labels": columns.labels_column, "summary": columns.summary_column}
    numbers, records = _read_records(source, columns, list(names.values()))
    available = {key for record in records for key in record}
    if not available & {names["sentences"], names["text"]}:
        raise _no_text(source, columns)
    labeled = labels != "ignored" and bool(available & {names["labels"], names["summary"]})
    if labels == "required" and not labeled:
        raise DataError(
            f"{source} has no column {quoted(names['labels'])} or {quoted(names['summary'])}:"
            " give labels (0 or 1 per sentence) or summaries, or name their column with"
            " --set data.labels_column=NAME or data.summary_column=NAME"
        )
    rows = [
        _make_row(source, number, record, names, language)
        for number, record in zip(numbers, records, strict=True)
    ]
    return _make_table(source, rows, labeled)


def stream_documents(
    source: str | Path, columns: DataConfig, *, allow_nul: bool = True, pause: float | None = None
) -> Iterator[tuple[list[str | list[str]], float]]:
    """Yield (documents, fraction of the source that has been read) block by block.

    A document is its text, or the list of its sentences where the row gives one; every row is kept,
    a missing text as ``""``. See `stream_texts`.

    Raises:
        DataError: anything unusable.
        MissingExtraError: Parquet or ``.zst`` needs a package that is not installed.
    """
    names = {"sentences": columns.sentences_column, "text": columns.text_column}
    wanted = list(names.values())
    name, blocks, chosen = _open(str(source), columns, wanted, pause, BLOCK_CHARACTERS)
    for block in blocks:
        documents = []
        for number, cells in block.rows:
            where = place(name, number)
            document = _parts(dict(zip(chosen, cells, strict=True)), where, names)
            if not allow_nul:
                refuse_nul("".join(document), where, wanted[isinstance(document, str)])
            documents.append(document)
        yield documents, block.fraction


def documents_from_lists(
    texts: Iterable[Any],
    answers: Iterable[Any] | None,
    language: str,
    source: str = "the given lists",
) -> DocumentTable:
    """Make a table from lists.

    Args:
        texts: of each document its text, or a list of its sentences.
        answers: of each document its summary (text, or a list of texts) or a list of 0 and 1 per
            sentence; None where there are none.
        language: of raw texts.
        source: how to call the lists in messages.

    Raises:
        DataError: see `read_documents`; lists of unequal length.
    """
    for what, values in (("documents", texts), ("answers", answers or [])):
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise DataError(f"{source}: the {what} are one {type(values).__name__}; give a list")
    given = list(texts)
    known = None if answers is None else list(answers)
    if known is not None and len(known) != len(given):
        raise DataError(f"{source}: {len(given)} documents but {len(known)} summaries or labels")
    rows = []
    for i, text in enumerate(given):
        record = {"text" if isinstance(text, str) else "sentences": text}
        if known is not None:
            answer = known[i]
            parts = answer if isinstance(answer, list | tuple | np.ndarray) else [""]
            has_labels = len(parts) > 0 and not any(isinstance(part, str) for part in parts)
            record["labels" if has_labels else "summary"] = answer
        names = {key: key for key in ("sentences", "text", "labels", "summary")}
        rows.append(_make_row(source, i + 1, record, names, language))
    return _make_table(source, rows, known is not None)


def _make_row(
    source: str, number: int, record: Mapping[str, Any], names: Mapping[str, str], language: str
) -> _Row:
    where = place(source, number)
    parts = _parts(record, where, names)
    is_text = isinstance(parts, str)
    document = make_document(parts, language)
    return _Row(
        number,
        document,
        _labels_of(record, where, names, document, not is_text),
        _summary_of(record, where, names, language),
    )


def _parts(record: Mapping[str, Any], where: str, names: Mapping[str, str]) -> str | list[str]:
    """Return the sentences of a row or, where it has none, its text."""
    sentences = _list(record.get(names["sentences"]), where, names["sentences"])
    if sentences is None:
        return clean_text(record.get(names["text"]), where, names["text"])
    return [clean_text(s, where, names["sentences"], "a sentence") for s in sentences]


def _no_text(where: str, columns: DataConfig) -> DataError:
    return DataError(
        f"{where} has no column {quoted(columns.sentences_column)} or"
        f" {quoted(columns.text_column)}; name one with --set data.sentences_column=NAME or"
        " data.text_column=NAME"
    )


def _labels_of(
    record: Mapping[str, Any], where: str, names: Mapping[str, str], document: Document, cut: bool
) -> list[int] | None:
    """Return the labels of a row, one per sentence; ``cut``: the row itself gives the sentences."""
    column = names.get("labels", "")
    labels = None
    if (given := _list(record.get(column), where, column)) is not None:
        labels = [_label(value, where, column) for value in given]
        if len(labels) != len(document.spans):
            advice = (
                "give one label per sentence"
                if cut
                else f"give the column {quoted(names['sentences'])}, which labels count"
            )
            raise DataError(
                f"{where}: {len(labels)} labels but {len(document.spans)} sentences; {advice}"
            )
    return labels


def _summary_of(
    record: Mapping[str, Any], where: str, names: Mapping[str, str], language: str
) -> list[str] | None:
    """Return the sentences of a row's reference: its lines, or those of its only line."""
    column = names.get("summary", "")
    reference = record.get(column)
    if isinstance(reference, str):
        lines = clean_text(reference, where, column).splitlines()
        summary = [line for line in lines if line.strip()]
        return split_text(summary[0], language).sentences if len(summary) == 1 else summary
    if (given := _list(reference, where, column)) is None:
        return None
    cleaned = [clean_text(s, where, column, "a sentence") for s in given]
    return [sentence for sentence in cleaned if sentence.strip()]


def _list(value: Any, where: str, column: str) -> list[Any] | None:
    """Return a list, tuple or array as a list; None for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | tuple | np.ndarray):
        return list(value)
    raise DataError(
        f"{where}, column {quoted(column)}: expected a list but found {type(value).__name__}"
        f" {quoted(value)}; CSV holds no lists: write JSONL or Parquet, or give text and summary"
    )


def _label(value: Any, where: str, column: str) -> int:
    if isinstance(value, np.generic):
        value = value.item()
    if value not in (0, 1):
        raise DataError(
            f"{where}, column {quoted(column)}: the label {quoted(value)} must be 0 or 1"
        )
    return int(value)


def _make_table(source: str, rows: list[_Row], labeled: bool) -> DocumentTable:
    """Return the rows that can be used, with labels for all or for none."""
    left_out: Counter[str] = Counter()
    kept: list[_Row] = []
    for row in rows:
        if reason := _unusable(row, labeled):
            left_out[reason] += 1
        else:
            kept.append(row)
    words: list[Label] = []
    if labeled:
        found = _all_labels(kept)
        left_out[NO_OVERLAP] += sum(not any(labels) for labels in found)
        pairs = [(row, labels) for row, labels in zip(kept, found, strict=True) if any(labels)]
        kept = [row for row, _ in pairs]
        words = ["".join(map(str, labels)) for _, labels in pairs]
    left = {reason: count for reason, count in left_out.items() if count}
    if not kept:
        found_reasons = listing([f"{count} {reason}" for reason, count in left.items()])
        raise DataError(f"{source} has no document that can be used: {found_reasons or 'no rows'}")
    return DocumentTable(
        source=source,
        texts=[row.document.text for row in kept],
        rows=[row.number for row in kept],
        labels=words if labeled else None,
        names=None,
        dropped_empty=left.get(NO_SENTENCES, 0),
        documents=[row.document for row in kept],
        summaries=[_reference(*p) for p in zip(kept, words, strict=True)] if labeled else None,
        left_out=left,
    )


def _unusable(row: _Row, labeled: bool) -> str | None:
    """Return why a row must be left out, or None."""
    if not row.document.has_words:
        return NO_SENTENCES
    if not labeled:
        return None
    if row.labels is not None:
        return None if any(row.labels) else NONE_CHOSEN
    if row.summary is None:
        return NO_ANSWER
    return None if row.summary else EMPTY_SUMMARY


def _reference(row: _Row, labels: Label) -> list[str]:
    if row.summary:
        return row.summary
    pairs = zip(row.document.sentences, str(labels), strict=True)
    return [sentence for sentence, label in pairs if label == "1"]


def _all_labels(rows: Sequence[_Row]) -> list[list[int]]:
    """Return the labels of each row: those given, or the oracle's for its summary."""
    asked = [row for row in rows if row.labels is None]
    made = iter(_oracle_labels([(r.document.sentences, r.summary or []) for r in asked]))
    return [next(made) if row.labels is None else row.labels for row in rows]


def _oracle_labels(pairs: list[tuple[list[str], list[str]]]) -> list[list[int]]:
    """Return labels of documents (sentences, summary); from the cache where they are there."""
    if not pairs:
        return []
    text = json.dumps([ORACLE_VERSION, pairs])
    name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    path = cache_folder() / "oracle" / f"{name}.json"
    try:
        kept: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
        if [len(labels) for labels in kept] == [len(sentences) for sentences, _ in pairs]:
            return kept
    except (OSError, ValueError, TypeError):
        pass  # not there, or damaged: search again
    rouge = Rouge()
    labels = []
    for sentences, summary in pairs:
        chosen = set(rouge.oracle(summary, sentences))
        labels.append([int(i in chosen) for i in range(len(sentences))])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, labels)
    except OSError:
        pass  # a cache that cannot be written costs time, not the answer
    return labels


def _read_records(
    source: str, columns: DataConfig, wanted: list[str]
) -> tuple[list[int], list[dict[str, Any]]]:
    """Return line or row numbers, and of each row the columns that are wanted."""
    _, blocks, chosen = _open(source, columns, wanted)
    rows = [row for block in blocks for row in block.rows]
    pairs = (zip(chosen, cells, strict=True) for _, cells in rows)
    records = [{k: v for k, v in row if v is not None} for row in pairs]
    return [number for number, _ in rows], records


def _open(
    source: str,
    columns: DataConfig,
    wanted: list[str],
    pause: float | None = None,
    characters: int | None = None,
) -> tuple[str, Iterator[Block], list[str]]:
    """Return a source's name, its rows and, filled with the first of them, their columns."""
    if source.startswith(HUB):
        raise DataError(f"{source}: documents are read from files; download it and give a file")
    known = file_format(source)
    is_json = source == STDIN or (known is not None and known.suffix in (".jsonl", ".ndjson"))
    chosen: list[str] = []

    def pick(where: str, available: Sequence[str]) -> list[str]:
        there = [name for name in wanted if name in available]
        if not there:
            raise _no_text(where, columns)
        chosen[:] = wanted if is_json else there  # each line of JSON has keys of its own
        return chosen

    name, blocks = open_blocks(source, pick, pause, gaps=True, characters=characters)
    return name, blocks, chosen
