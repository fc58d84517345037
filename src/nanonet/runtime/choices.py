"""What was found to run a bundle fastest on this machine: kept, and found again.

``tuning.json`` is not among the manifest's checksums: it is made after the export, on each machine
anew. It needs none, for it decides how fast the answers come, not which: it holds nothing but the
name of an engine and two bounded numbers. (An engine of lower precision is only ever recorded where
the user asked for it with ``min_agreement``.)
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from nanonet.core.bundle import MODEL, Manifest
from nanonet.core.errors import ConfigError, NanoNetError
from nanonet.core.files import write_json
from nanonet.core.machine import cache_folder, processor_name, usable_cores
from nanonet.core.strict import build
from nanonet.runtime.engines import (
    DEFAULT,
    ENGINES,
    TOKENS_PER_CHUNK,
    Engine,
    available_engines,
    open_engine,
)

TUNING, FORMAT = "tuning.json", 1
LARGEST_FILE = 100_000  # bytes; ours has about a thousand
LARGEST_CHUNK = 65_536  # tokens: more would only take memory


@dataclass(frozen=True)
class Conditions:
    """What a measurement holds for."""

    processor: str
    cores: int
    versions: dict[str, str]  # of the installed engines' packages
    model_sha256: str


@dataclass(frozen=True)
class Choice:
    """A way to run a model, and what was measured of it."""

    engine: str
    threads: int = field(metadata={"minimum": 1})
    tokens_per_chunk: int = field(metadata={"minimum": 1, "maximum": LARGEST_CHUNK})
    single_ms: float = field(metadata={"minimum": 0})  # one text, median, without tokenization
    batched_ms: float = field(metadata={"minimum": 0})  # per text of many


@dataclass(frozen=True)
class Tuning:
    """The best choice for each number of threads, the best of all first."""

    format: int
    conditions: Conditions
    choices: list[Choice]

    def pick(self, threads: int) -> Choice | None:
        """Return the best choice with so many threads (0: any), or None."""
        return next((c for c in self.choices if threads in (0, c.threads)), None)


def conditions(model_sha256: str) -> Conditions:
    """Return what a measurement of a model on this machine holds for."""
    versions = {}
    for package in sorted({ENGINES.get(name).package for name in ENGINES}):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return Conditions(processor_name(), usable_cores(), versions, model_sha256)


def record(bundle: Path, tuning: Tuning) -> Path | None:
    """Keep a measurement in the bundle or, where that fails, in the cache folder.

    Returns:
        The file; None if neither can be written.
    """
    cached = _cache_file(tuning.conditions.model_sha256)
    with suppress(OSError):
        write_json(bundle / TUNING, asdict(tuning))
        with suppress(OSError):
            cached.unlink(missing_ok=True)  # it is older, and would be read first
        return bundle / TUNING
    with suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_json(cached, asdict(tuning))
        return cached
    return None


def recorded(bundle: Path, manifest: Manifest, threads: int = 0) -> Choice | None:
    """Return what was recorded for a bundle and a number of threads (0: any).

    None if there is nothing, it is damaged, or it was measured under other conditions. The cache
    comes first: a bundle that cannot be written may carry an older measurement.
    """
    sha256 = manifest.files[MODEL]
    for path in (_cache_file(sha256), bundle / TUNING):
        tuning = _read(path)
        if tuning is not None and tuning.conditions == conditions(sha256):
            choice = tuning.pick(threads)
            if choice is not None and _is_usable(choice):
                return choice
    return None


def open_best(folder: Path, manifest: Manifest, threads: int, tune: bool) -> tuple[Engine, int]:
    """Return what runs a bundle's model, and how many tokens at once.

    Args:
        folder: the bundle.
        manifest: its manifest.
        threads: CPU threads of one run; 0: as recorded, else one per core.
        tune: first measure what is fastest here, and record it.
    """
    model = folder / MODEL
    if tune:
        from nanonet.runtime.tuning import tune as measure

        measured = measure(folder, threads=threads)
        record(folder, measured)
        choice = measured.pick(threads)
    else:
        choice = recorded(folder, manifest, threads)
    if choice is not None:
        with suppress(NanoNetError):  # an engine that broke since: the default one still runs
            return open_engine(choice.engine, model, choice.threads), choice.tokens_per_chunk
    return open_engine(DEFAULT, model, threads), TOKENS_PER_CHUNK


def _is_usable(choice: Choice) -> bool:
    is_there = choice.engine == DEFAULT or choice.engine in available_engines()
    return is_there and choice.threads <= usable_cores()


def _read(path: Path) -> Tuning | None:
    """Return a file's content, or None if it is not what `record` writes."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            return None
        tuning = build(Tuning, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError, ConfigError):
        return None
    return tuning if tuning.format == FORMAT else None


def _cache_file(model_sha256: str) -> Path:
    return cache_folder() / "tuning" / f"{model_sha256}.json"
