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

from nanonet.core.bundle import read_manifest
from nanonet.core.errors import ConfigError, DataError, MissingExtraError, NanoNetError, RunError
from nanonet.core.files import write_json
from nanonet.runtime.batch import Files, Job, Progress, job_of, predict_file
from nanonet.runtime.predictor import Predictor
from nanonet.tasks.labels import LabelSet

# Given an input file, an output file and the text column: how they are read and written.
FilesOf = Callable[[str, str, str, LabelSet], Files]

_RECORD = ".nanonet.json"  # in the output folder: the job of every file; readers of Parquet skip it


class FileWorker:
    """Answers whole files: an actor of the pool."""

    def __init__(self, bundle: str, column: str, threads: int, files_of: FilesOf) -> None:
        self._bundle = Path(bundle)
        self._column = column
        self._predictor = Predictor.load(bundle, threads=threads)
        self._files_of = files_of

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the rows done and what went wrong, file by file.

        ``batch`` holds arrays of shape (files,): ``source``, ``output`` and whether to ``restart``
        where unfinished work is found.
        """
        done: dict[str, list[Any]] = {"rows": [], "error": []}
        for source, output, restart in zip(
            batch["source"], batch["output"], batch["restart"], strict=True
        ):
            rows, problem = 0, ""
            try:
                rows = self._answer(str(source), str(output), bool(restart))
            # As a value: an exception would end the other files' work, and come in Ray's wrapping.
            except (NanoNetError, OSError) as error:
                problem = str(error)
            done["rows"].append(rows)
            done["error"].append(problem)
        return done

    def _answer(self, source: str, output: str, restart: bool) -> int:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        return predict_file(
            self._predictor,
            Path(output),
            self._files_of(source, output, self._column, self._predictor.labels),
            _Silent(),
            job=job_of(Path(source), self._bundle, self._column),
            overwrite=restart,
        )


class _Silent:
    """The progress of a file is nobody's concern: that of the folder is shown."""

    def start(self, rows: int) -> None:
        """See `Progress`."""

    def update(self, rows: int, fraction: float) -> None:
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
    names = _names(source)
    jobs = {name: job_of(source / name, bundle, column) for name in names}
    items = [
        {"source": str(source / name), "output": str(output / name), "restart": restart}
        for name, restart in _todo(output, jobs, overwrite).items()
    ]
    if not items:
        return 0
    rows, problems = 0, list[str]()
    progress.start(0)
    try:
        with _cluster(ray):
            actor = (str(bundle), column, threads, files_of)
            for count, row in enumerate(_answered(ray, items, actor, workers), start=1):
                rows += int(row["rows"])
                problems += [row["error"]] if row["error"] else []
                progress.update(rows, count / len(items))
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


def _todo(output: Path, jobs: dict[str, Job], overwrite: bool) -> dict[str, bool]:
    """Return the files that need work, and whether unfinished work on them is out of date.

    Records the jobs in the output folder, after removing outputs that are out of date.
    """
    before = _recorded(output)
    keys = {
        key
        for name, job in jobs.items()
        for key in job
        if key != "input" and name in before and before[name].get(key) != job[key]
    }
    if keys and not overwrite:
        raise RunError(
            f"{output} was answered with another {' and another '.join(sorted(keys))}: give the "
            "same again, start afresh with --overwrite, or name a new --output"
        )
    todo = {}
    for name, job in jobs.items():
        restart = overwrite or before.get(name) != job
        if restart or not (output / name).is_file():
            todo[name] = restart
            (output / name).unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / _RECORD, {**before, **jobs})
    return todo


def _recorded(output: Path) -> dict[str, Any]:
    """Return the jobs that an earlier call has recorded in the output folder, by file."""
    record = output / _RECORD
    if not record.is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise RunError(
                f"{output} exists and is not the output of an earlier run: name a new one"
            )
        return {}
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
        return {name: dict(job) for name, job in before.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise RunError(f"{record} is damaged: name a new --output") from error


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Join the running cluster, or start one on this machine and end it afterwards; quietly."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it tells of inner matters as errors
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
