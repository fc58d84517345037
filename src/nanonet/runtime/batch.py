"""Classify texts block by block, in constant memory: a stream, or a file that can be resumed.

While a file is written, its finished blocks lie beside it in the folder ``.NAME.partial``::

    job.json                              what they are made from
    000000000000-000000004096.jsonl       the answers to rows 0 to 4095, whole
    000000004096-000000008192.jsonl       and so on

At the end they are joined and renamed to the output. The runtime knows no file formats: what reads,
writes and joins is passed in (see `Files`).
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nanonet.core.bundle import MANIFEST
from nanonet.core.errors import InterruptedRunError, RunError
from nanonet.core.files import sha256_file, write_json
from nanonet.runtime.predictor import Predictor
from nanonet.tasks.labels import LabelSet

Answers = dict[str, list[Any]]  # column name -> values, all of the same length
Blocks = Iterable[tuple[list[str], float]]  # texts, and the fraction of the source read after them
Job = Mapping[str, str | int]

_JOB = "job.json"
_PART = re.compile(r"(\d{12})-(\d{12})\.\w+")


class Progress(Protocol):
    """Who wants to know how far the work is."""

    def start(self, rows: int) -> None:
        """Work starts; an earlier run has finished ``rows`` of it."""

    def update(self, rows: int, fraction: float) -> None:
        """So many rows are done, and so much of the source (0 to 1, 0: unknown) has been read."""


@dataclass(frozen=True)
class Files:
    """How the rows of one input come in and how their answers go out.

    Attributes:
        blocks: given the number of rows to leave out at the start, yields the others.
        suffix: of a part's name.
        write: writes the answers of a block to a part, whole or not at all.
        join: joins parts, at least one, to a file in the format of its name.
    """

    blocks: Callable[[int], Blocks]
    suffix: str
    write: Callable[[Path, Answers], None]
    join: Callable[[list[Path], Path], None]


def answer(predictor: Predictor, texts: list[str]) -> Answers:
    """Return the columns text, label, label_name and probability of n texts."""
    probabilities = predictor.predict_proba(texts)  # (n, classes)
    best = probabilities.argmax(-1)
    return {
        "text": texts,
        "label": [predictor.labels.values[i] for i in best],
        "label_name": [predictor.labels.names[i] for i in best],
        "probability": [round(float(p[i]), 6) for p, i in zip(probabilities, best, strict=True)],
    }


def answer_types(labels: LabelSet) -> dict[str, type]:
    """Return what the columns of `answer` hold."""
    return {"text": str, "label": type(labels.values[0]), "label_name": str, "probability": float}


def predict_stream(
    predictor: Predictor, blocks: Blocks, write: Callable[[str], None], progress: Progress
) -> int:
    """Write an answer as a JSON line for each row, block by block; return the number of rows."""
    progress.start(0)
    rows = 0
    for texts, fraction in blocks:
        columns = answer(predictor, texts)
        records = (
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        )
        write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        rows += len(texts)
        progress.update(rows, fraction)
    return rows


def job_of(source: Path, bundle: Path, column: str) -> Job:
    """Return what decides the answers to a file: a job with another value is another job."""
    state = source.stat()
    return {
        "input": f"{state.st_size} bytes of {state.st_mtime_ns}",
        "bundle": sha256_file(bundle / MANIFEST),  # which holds the checksums of the rest
        "text column": column,
    }


def predict_file(
    predictor: Predictor,
    output: Path,
    files: Files,
    progress: Progress,
    *,
    job: Job | None,
    overwrite: bool = False,
) -> int:
    """Write the answers to every row of an input to ``output``; return the number of rows.

    The file appears complete or not at all. After a kill, the same call with the same job goes on
    after the last finished block. ``job=None``: an input that cannot be read twice, for which
    nothing is kept. ``overwrite`` drops the unfinished work of another job.

    Raises:
        RunError: there is unfinished work of another job.
        InterruptedRunError: Ctrl-C; finished blocks are kept.
        NanoNetError: whatever ``files`` raises; finished blocks are kept.
    """
    folder = output.with_name(f".{output.name}.partial")
    _prepare(folder, output, job, overwrite)
    parts: list[Path] = []
    try:
        rows = _answer_blocks(predictor, folder, files, progress, parts)
        whole = folder / output.name
        files.join(parts, whole)
        whole.replace(output)
    except BaseException as error:
        if job is None or not parts:
            shutil.rmtree(folder, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            raise InterruptedRunError(
                f"{output} is not finished; the same command goes on where this one stopped"
            ) from None
        raise
    _drop(folder)
    return rows


def _answer_blocks(
    predictor: Predictor, folder: Path, files: Files, progress: Progress, parts: list[Path]
) -> int:
    """Add the finished parts to ``parts``, then the missing ones; return the number of rows."""
    rows = 0
    for path in sorted(folder.iterdir()):
        match = _PART.fullmatch(path.name)
        if match and int(match[1]) == rows:
            parts.append(path)
            rows = int(match[2])
    progress.start(rows)

    def finish(texts: list[str]) -> int:
        end = rows + len(texts)
        part = folder / f"{rows:012}-{end:012}{files.suffix}"
        files.write(part, answer(predictor, texts))
        parts.append(part)
        return end

    for texts, fraction in files.blocks(rows):
        rows = finish(texts)
        progress.update(rows, fraction)
    if not parts:
        finish([])  # of no rows, but with the columns
    return rows


def _prepare(folder: Path, output: Path, job: Job | None, overwrite: bool) -> None:
    """Make the folder of the parts, or find that of the same job."""
    try:
        found = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None  # a job comes first: without one there is nothing of worth
    if isinstance(found, dict) and not overwrite:
        if found == job:
            return
        keys = [key for key in job or () if found.get(key) != (job or {})[key]] or ["input"]
        raise RunError(
            f"{folder} holds unfinished work on {output} from another {' and another '.join(keys)};"
            " give the same again to finish it, or start afresh with --overwrite"
        )
    _drop(folder)
    folder.mkdir()
    if job is not None:
        write_json(folder / _JOB, dict(job))


def _drop(folder: Path) -> None:
    """Remove a folder of parts; a kill on the way leaves one that counts as empty."""
    (folder / _JOB).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
