"""Classify a folder of Parquet files on a Ray cluster, an output file for each input file.

Ray Data hands the files to a pool of actors, each of which holds a `Predictor`. Within an actor a
file goes the way of `predict_file`: block by block, whole or not at all, resumable. The folders
must be where every node of the cluster sees them.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanonet.core.bundle import MANIFEST, read_manifest
from nanonet.core.errors import ConfigError, DataError, MissingExtraError, NanoNetError, RunError
from nanonet.core.files import sha256_file, write_json
from nanonet.runtime.batch import Files, Progress, predict_file
from nanonet.runtime.predictor import Predictor
from nanonet.tasks.labels import LabelSet

# Given an input file, an output file and the text column: how they are read and written.
FilesOf = Callable[[str, str, str, LabelSet], Files]

_RECORD = (
    ".nanonet.json"  # in the output folder: what was answered with what; readers of Parquet skip it
)


class FileWorker:
    """Answers whole files: an actor of the pool."""

    def __init__(
        self,
        bundle: str,
        column: str,
        threads: int,
        files_of: FilesOf,
        overwrite: bool,
        min_confidence: float | None = None,
    ) -> None:
        self._bundle = Path(bundle)
        self._column = column
        self._predictor = Predictor.load(bundle, threads=threads, min_confidence=min_confidence)
        self._files_of = files_of
        self._overwrite = overwrite

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the rows done and what went wrong ("" if nothing), file by file.

        ``batch`` holds two arrays of shape (files,): ``source`` and ``output``.
        """
        done: dict[str, list[Any]] = {"rows": [], "error": []}
        for source, output in zip(batch["source"], batch["output"], strict=True):
            rows, problem = 0, ""
            try:
                rows = self._answer(str(source), str(output))
            # As a value: an exception would end the other files' work, and come in Ray's wrapping.
            except (NanoNetError, OSError) as error:
                problem = str(error)
            done["rows"].append(rows)
            done["error"].append(problem)
        return done

    def _answer(self, source: str, output: str) -> int:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        files = self._files_of(source, output, self._column, self._predictor.labels)
        return predict_file(
            *(self._predictor, self._bundle, Path(output), files, _Silent()),
            overwrite=self._overwrite,
        ).rows


class _Silent:
    """The progress of a file is nobody's concern: that of the folder is shown."""

    def update(self, rows: int, reused: int, fraction: float) -> None:
        """See `Progress`."""


def predict_folder(
    bundle: Path,
    source: Path,
    output: Path,
    files_of: FilesOf,
    column: str,
    progress: Progress,
    *,
    workers: int | None = None,
    threads: int = 1,
    overwrite: bool = False,
    min_confidence: float | None = None,
) -> int:
    """Answer every ``.parquet`` file below ``source`` in a file of that name below ``output``.

    Files that an earlier call has finished are left as they are, unless the input has changed.
    Without a running cluster (``RAY_ADDRESS``) one is started on this machine for the time of the
    call. Returns the number of rows answered by this call.

    Args:
        bundle: its folder, on every node.
        source: the folder of the input files, on every node; hidden files and folders are skipped.
        output: the folder of the answers, on every node; new, empty or of an earlier call.
        files_of: how a file is read and written; Ray pickles it.
        column: name of the text column.
        progress: told after every file.
        workers: actors; None: as the CPUs of the cluster allow.
        threads: CPUs of each actor.
        overwrite: answer all files again.
        min_confidence: see `Predictor.load`.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: one folder lies in the other.
        DataError: no files, or some that cannot be answered, after all others have been.
        RunError: the output is another job's, or Ray failed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("--engine ray", "cluster") from error
    bundle, source, output = bundle.resolve(), source.resolve(), output.resolve()
    if source.is_relative_to(output) or output.is_relative_to(source):
        raise ConfigError(f"{output} and {source} lie in each other: choose another --output")
    read_manifest(bundle)
    least = "as the bundle says" if min_confidence is None else repr(min_confidence)
    names = _names(source)
    job = {"bundle": sha256_file(bundle / MANIFEST), "text column": column}
    job["min_confidence"] = least
    items = [
        {"source": str(source / name), "output": str(output / name)}
        for name in _todo(source, output, names, job, overwrite)
    ]
    if not items:
        return 0
    rows, problems = 0, list[str]()
    try:
        with _cluster(ray):
            actor = (str(bundle), column, threads, files_of, overwrite, min_confidence)
            for count, row in enumerate(_answered(ray, items, actor, workers), start=1):
                rows += int(row["rows"])
                problems += [row["error"]] if row["error"] else []
                progress.update(rows, 0, count / len(items))
    except (ray.exceptions.RayError, RuntimeError, ConnectionError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(f"Ray failed: {lines[-1][:300]}") from error
    if problems:
        more = f" (and {len(problems) - 1} more such files)" if len(problems) > 1 else ""
        raise DataError(
            f"{problems[0]}{more}; {len(items) - len(problems)} of {len(items)} files are answered"
        )
    return rows


def _answered(
    ray: Any, items: list[dict[str, Any]], actor: tuple[Any, ...], workers: int | None
) -> Iterator[dict[str, Any]]:
    """Yield what `FileWorker` returns of each file, as the files are finished."""
    threads = actor[2]
    fitting = max(1, int(ray.cluster_resources().get("CPU", 1) // threads))
    pool = ray.data.ActorPoolStrategy(
        size=min(workers or fitting, len(items)),
        max_tasks_in_flight_per_actor=1,  # a file never waits for a busy actor
    )
    files = ray.data.from_items(items, override_num_blocks=len(items))
    rows: Iterator[dict[str, Any]] = files.map_batches(
        FileWorker, fn_constructor_args=actor, batch_size=1, num_cpus=threads, compute=pool
    ).iter_rows()
    return rows


def _names(source: Path) -> list[str]:
    """Return the names of the input files relative to their folder, in order."""
    names = [path.relative_to(source) for path in source.rglob("*.parquet") if path.is_file()]
    shown = [str(n) for n in names if not any(part.startswith((".", "_")) for part in n.parts)]
    if not shown:
        raise DataError(f"{source} holds no .parquet files")
    return sorted(shown)


def _todo(
    source: Path, output: Path, names: list[str], job: dict[str, str], overwrite: bool
) -> list[str]:
    """Return the names of the files that need work.

    Records job and inputs in the output folder, after removing outputs that are out of date.
    """
    before = _recorded(output)
    others = [key for key, value in job.items() if before and before.get(key) != value]
    if others and not overwrite:
        raise RunError(
            f"{output} was answered with another {' and another '.join(others)}: give the same "
            "again, start afresh with --overwrite, or name a new --output"
        )
    states = {name: (source / name).stat() for name in names}
    inputs = {name: f"{state.st_size} {state.st_mtime_ns}" for name, state in states.items()}
    known = {} if overwrite else before.get("inputs", {})
    todo = []
    for name in names:
        if known.get(name) != inputs[name] or not (output / name).is_file():
            todo.append(name)
            (output / name).unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / _RECORD, {**job, "inputs": {**known, **inputs}})
    return todo


def _recorded(output: Path) -> dict[str, Any]:
    """Return what an earlier call has recorded in the output folder; empty where there was none."""
    record = output / _RECORD
    if not record.is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise RunError(
                f"{output} exists and is not the output of an earlier run: name a new one"
            )
        return {}
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict) or not isinstance(before.get("inputs"), dict):
        raise RunError(f"{record} is damaged: name a new --output")
    return before


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Join the running cluster, or start one on this machine and end it afterwards; quietly."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    is_own = not ray.is_initialized()
    if is_own:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        if is_own:
            ray.shutdown()
