"""Answer rows block by block, in constant memory: a stream, or a file that can be resumed.

While a file is written, its finished blocks lie beside it in the folder ``.NAME.partial``::

    job.json                                    the bundle that answers, and what it is asked
    000000000000-000000004096-DIGEST.jsonl      the answers to rows 0 to 4095, whole
    000000004096-000000008192-DIGEST.jsonl      and so on

The digest is that of the block's rows: a later call answers only the blocks that have no such
file, whatever has become of the input. At the end the blocks are joined and renamed to the output.
The runtime knows no file formats: what reads, writes and joins is passed in (see `Files`).
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from nanonet.core.bundle import MANIFEST
from nanonet.core.errors import InterruptedRunError, RunError
from nanonet.core.files import sha256_file, write_json
from nanonet.runtime.predictor import MultilabelPredictor, Predictor
from nanonet.runtime.summarizer import SENTENCE, Selection, Summarizer, make_documents

Row = str | list[str]  # a text, or the sentences of one
Answers = dict[str, list[Any]]  # column name -> values, all of the same length
Blocks = Iterable[tuple[Sequence[Row], float]]  # rows; fraction of the source read after them

_JOB = "job.json"


class Answerer(Protocol):
    """A bundle that answers rows.

    Attributes:
        types: what the columns of its answers hold: str, int or float, lists or records of them.
        asked: what decides its answers beside bundle and rows.
    """

    @property
    def types(self) -> Mapping[str, Any]:
        """See above."""

    @property
    def asked(self) -> Mapping[str, str]:
        """See above."""

    def answer(self, rows: Sequence[Any]) -> Answers:
        """Return a value in every column for each row."""


@dataclass(frozen=True)
class Classify:
    """Answers texts with their classes; see `Answerer`."""

    predictor: Predictor

    @property
    def asked(self) -> Mapping[str, str]:
        """See `Answerer`."""
        return {"least confidence": str(self.predictor.min_confidence)}

    @property
    def types(self) -> Mapping[str, Any]:
        """See `Answerer`."""
        label = type(self.predictor.labels.values[0])
        kinds = {"text": str, "label": label, "label_name": str, "probability": float}
        return kinds | {"abstained": bool}

    def answer(self, rows: Sequence[str]) -> Answers:
        """Return the columns text, label, label_name, probability and abstained of n texts.

        Where the predictor abstains, label and name are None.
        """
        labels = self.predictor.labels
        probabilities = self.predictor.predict_proba(rows)  # (n, classes)
        sure = (probabilities.max(-1) >= self.predictor.min_confidence).tolist()
        best = list(zip(probabilities.argmax(-1), sure, strict=True))
        return {
            "text": list(rows),
            "label": [labels.values[i] if known else None for i, known in best],
            "label_name": [labels.names[i] if known else None for i, known in best],
            "probability": [round(float(p), 6) for p in probabilities.max(-1)],
            "abstained": [not known for known in sure],
        }


@dataclass(frozen=True)
class GiveLabels:
    """Answers texts with any number of labels; see `Answerer`."""

    predictor: MultilabelPredictor

    @property
    def asked(self) -> Mapping[str, str]:
        """See `Answerer`."""
        return {"thresholds": str(self.predictor.thresholds.tolist())}

    @property
    def types(self) -> Mapping[str, Any]:
        """See `Answerer`."""
        label = type(self.predictor.labels.values[0])
        return {"text": str, "labels": [label], "label_names": [str], "probabilities": [float]}

    def answer(self, rows: Sequence[str]) -> Answers:
        """Return the columns text, labels, label_names and probabilities of n texts.

        Each holds a list of a text's labels, the surest first.
        """
        labels = self.predictor.labels
        probabilities = self.predictor.predict_proba(rows)  # (n, L)
        chosen = [self.predictor.surest_first(own) for own in probabilities]
        return {
            "text": list(rows),
            "labels": [[labels.values[k] for k in own] for own in chosen],
            "label_names": [[labels.names[k] for k in own] for own in chosen],
            "probabilities": [
                [round(float(p[k]), 6) for k in own]
                for p, own in zip(probabilities, chosen, strict=True)
            ],
        }


@dataclass(frozen=True)
class Summarize:
    """Answers documents, texts or lists of sentences, with their summaries; see `Answerer`."""

    summarizer: Summarizer
    selection: Selection

    @property
    def types(self) -> Mapping[str, Any]:
        """See `Answerer`."""
        return {"text": str, "summary": str, "sentences": [SENTENCE]}

    @property
    def asked(self) -> Mapping[str, str]:
        """See `Answerer`."""
        chosen = self.selection
        return {"budget": str(chosen.budget), "block_trigrams": str(chosen.block_trigrams)}

    def answer(self, rows: Sequence[Row]) -> Answers:
        """Return the columns text, summary and sentences of n documents."""
        documents = make_documents(rows, self.summarizer.settings.language)
        scored = zip(documents, self.summarizer.score(documents), strict=True)
        found = [self.selection.summary(*pair).to_json() for pair in scored]
        return {
            "text": [document.text for document in documents],
            "summary": [row["summary"] for row in found],
            "sentences": [row["sentences"] for row in found],
        }


class Progress(Protocol):
    """Who wants to know how far the work is."""

    def update(self, rows: int, reused: int, fraction: float) -> None:
        """So many rows are done, ``reused`` of them by an earlier call.

        ``fraction`` of the source has been read (0 to 1; 0: unknown).
        """


@dataclass(frozen=True)
class Files:
    """How the rows of one input come in and how their answers go out.

    Attributes:
        blocks: the input, from its start.
        suffix: of a part's name.
        write: writes the answers of a block to a part, whole or not at all.
        join: joins parts, at least one, to a file in the format of its name.
    """

    blocks: Blocks
    suffix: str
    write: Callable[[Path, Answers], None]
    join: Callable[[Sequence[Path], Path], None]


@dataclass(frozen=True)
class Done:
    """What has been written.

    Attributes:
        rows: of the output.
        reused: rows that an earlier call had answered.
        outdated: finished blocks of an earlier call that did not fit the input any more.
    """

    rows: int
    reused: int
    outdated: int


def predict_stream(
    answerer: Answerer, blocks: Blocks, write: Callable[[str], None], progress: Progress
) -> int:
    """Write an answer as a JSON line for each row, block by block; return the number of rows."""
    done = 0
    for rows, fraction in blocks:
        columns = answerer.answer(rows)
        records = (
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        )
        write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        done += len(rows)
        progress.update(done, 0, fraction)
    return done


def predict_file(
    answerer: Answerer,
    bundle: Path,
    output: Path,
    files: Files,
    progress: Progress,
    *,
    overwrite: bool = False,
) -> Done:
    """Write the answers to every row of an input to ``output``.

    The file appears complete or not at all. After a kill or an error, the same call answers what is
    not answered yet. ``overwrite`` drops unfinished work that another bundle began, or this one
    when it was asked for something else.

    Raises:
        RunError: there is such work.
        InterruptedRunError: Ctrl-C; finished blocks are kept.
        NanoNetError: whatever ``files`` raises; finished blocks are kept.
    """
    folder = output.with_name(f".{output.name}.partial")
    # The manifest holds the checksums of the rest.
    _prepare(
        folder, {"bundle": sha256_file(bundle / MANIFEST), **answerer.asked}, output, overwrite
    )
    found = set(folder.glob(f"*{files.suffix}"))
    parts: list[Path] = []
    try:
        rows, reused = _answer_blocks(answerer, folder, files, progress, parts)
        whole = folder / output.name
        files.join(parts, whole)
        whole.replace(output)
    except BaseException as error:
        if not parts and not found:
            shutil.rmtree(folder, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            raise InterruptedRunError(
                f"{output} is not finished; the same command goes on where this one stopped"
            ) from None
        raise
    _drop(folder)
    return Done(rows, reused, len(found.difference(parts)))


def _answer_blocks(
    answerer: Answerer, folder: Path, files: Files, progress: Progress, parts: list[Path]
) -> tuple[int, int]:
    """Add a file for every block to ``parts``; return (rows, rows that were answered before)."""
    done = reused = 0

    def finish(rows: Sequence[Row]) -> int:
        end = done + len(rows)
        part = folder / f"{done:012}-{end:012}-{_digest(rows)}{files.suffix}"
        known = part.exists()
        if not known:
            files.write(part, answerer.answer(rows))
        parts.append(part)
        return len(rows) if known else 0

    for rows, fraction in files.blocks:
        reused += finish(rows)
        done += len(rows)
        progress.update(done, reused, fraction)
    if not parts:
        finish([])  # no rows, but their columns
    return done, reused


def _digest(rows: Sequence[Row]) -> str:
    digest = blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _prepare(folder: Path, job: dict[str, str], output: Path, overwrite: bool) -> None:
    """Make the folder of the parts, or find that of the same job."""
    try:
        found = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None  # it comes first and goes first: without it there is nothing of worth
    if found == job and not overwrite:
        return
    if found is not None and not overwrite:
        before = found if isinstance(found, dict) else {}
        others = [key for key in job if before.get(key) != job[key]] or list(job)
        raise RunError(
            f"{folder} holds unfinished work on {output} with another "
            f"{' and another '.join(others)}; finish it with that one, or start afresh with"
            " --overwrite"
        )
    _drop(folder)
    folder.mkdir()
    write_json(folder / _JOB, job)


def _drop(folder: Path) -> None:
    """Remove a folder of parts; a kill on the way leaves one that counts as empty."""
    (folder / _JOB).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
