"""Classify texts block by block, in constant memory: a stream, or a file that can be resumed.

While a file is written, its finished blocks lie beside it in the folder ``.NAME.partial``::

    job.json                                    the bundle that answers
    000000000000-000000004096-DIGEST.jsonl      the answers to rows 0 to 4095, whole
    000000004096-000000008192-DIGEST.jsonl      and so on

The digest is that of the block's texts: a later call answers only the blocks that have no such
file, whatever has become of the input. At the end the blocks are joined and renamed to the output.
The runtime knows no file formats: what reads, writes and joins is passed in (see `Files`).
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from nanonet.core.bundle import MANIFEST
from nanonet.core.errors import InterruptedRunError, RunError
from nanonet.core.files import sha256_file, write_json
from nanonet.runtime.predictor import Predictor
from nanonet.tasks.labels import LabelSet

Answers = dict[str, list[Any]]  # column name -> values, all of the same length
Blocks = Iterable[tuple[list[str], float]]  # texts, and the fraction of the source read after them

_JOB = "job.json"


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


def answer(predictor: Predictor, texts: list[str]) -> Answers:
    """Return the columns text, label, label_name, probability and abstained of n texts.

    Where the predictor abstains, label and name are None.
    """
    probabilities = predictor.predict_proba(texts)  # (n, classes)
    sure = (probabilities.max(-1) >= predictor.min_confidence).tolist()
    best = list(zip(probabilities.argmax(-1), sure, strict=True))
    return {
        "text": texts,
        "label": [predictor.labels.values[i] if known else None for i, known in best],
        "label_name": [predictor.labels.names[i] if known else None for i, known in best],
        "probability": [round(float(p), 6) for p in probabilities.max(-1)],
        "abstained": [not known for known in sure],
    }


def answer_types(labels: LabelSet) -> dict[str, type]:
    """Return what the columns of `answer` hold."""
    label = type(labels.values[0])
    return {
        "text": str,
        "label": label,
        "label_name": str,
        "probability": float,
        "abstained": bool,
    }


def predict_stream(
    predictor: Predictor, blocks: Blocks, write: Callable[[str], None], progress: Progress
) -> int:
    """Write an answer as a JSON line for each row, block by block; return the number of rows."""
    rows = 0
    for texts, fraction in blocks:
        columns = answer(predictor, texts)
        records = (
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        )
        write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        rows += len(texts)
        progress.update(rows, 0, fraction)
    return rows


def predict_file(
    predictor: Predictor,
    bundle: Path,
    output: Path,
    files: Files,
    progress: Progress,
    *,
    overwrite: bool = False,
) -> Done:
    """Write the answers to every row of an input to ``output``.

    The file appears complete or not at all. After a kill or an error, the same call answers what is
    not answered yet. ``overwrite`` drops the unfinished work of another bundle.

    Raises:
        RunError: there is unfinished work of another bundle.
        InterruptedRunError: Ctrl-C; finished blocks are kept.
        NanoNetError: whatever ``files`` raises; finished blocks are kept.
    """
    folder = output.with_name(f".{output.name}.partial")
    job = {
        "bundle": sha256_file(bundle / MANIFEST),  # which holds the checksums of the rest
        "min_confidence": predictor.min_confidence,
    }
    _prepare(folder, job, output, overwrite)
    found = set(folder.glob(f"*{files.suffix}"))
    parts: list[Path] = []
    try:
        rows, reused = _answer_blocks(predictor, folder, files, progress, parts)
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
    predictor: Predictor, folder: Path, files: Files, progress: Progress, parts: list[Path]
) -> tuple[int, int]:
    """Add a file for every block to ``parts``; return (rows, rows that were answered before)."""
    rows = reused = 0

    def finish(texts: list[str]) -> int:
        end = rows + len(texts)
        part = folder / f"{rows:012}-{end:012}-{_digest(texts)}{files.suffix}"
        known = part.exists()
        if not known:
            files.write(part, answer(predictor, texts))
        parts.append(part)
        return len(texts) if known else 0

    for texts, fraction in files.blocks:
        reused += finish(texts)
        rows += len(texts)
        progress.update(rows, reused, fraction)
    if not parts:
        finish([])  # no rows, but their columns
    return rows, reused


def _digest(texts: list[str]) -> str:
    digest = blake2b(digest_size=16)
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _prepare(folder: Path, job: dict[str, Any], output: Path, overwrite: bool) -> None:
    """Make the folder of the parts, or find that of the same job."""
    try:
        found = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None  # it comes first and goes first: without it there is nothing of worth
    if found == job and not overwrite:
        return
    if found is not None and not overwrite:
        raise RunError(
            f"{folder} holds unfinished work on {output} with another bundle or min_confidence;"
            " finish it with the same, or start afresh with --overwrite"
        )
    _drop(folder)
    folder.mkdir()
    write_json(folder / _JOB, job)


def _drop(folder: Path) -> None:
    """Remove a folder of parts; a kill on the way leaves one that counts as empty."""
    (folder / _JOB).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
