"""What runs a bundle fastest on this machine, by measurement.

`tune` times engines, threads and batch sizes on texts of the lengths that will come;
`nanonet.runtime.choices` keeps the outcome, and ``Predictor.load`` uses it.
"""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanonet.core.bundle import MODEL, TOKENIZER, Manifest, read_manifest
from nanonet.core.config import SummarizationConfig
from nanonet.core.errors import ConfigError
from nanonet.core.machine import usable_cores
from nanonet.core.strict import build
from nanonet.runtime.choices import FORMAT, Choice, Tuning, conditions
from nanonet.runtime.engines import (
    DEFAULT,
    ENGINES,
    TOKENS_PER_CHUNK,
    Engine,
    available_engines,
    open_engine,
    run_rows,
    run_windows,
)
from nanonet.tasks.base import Row, Window
from nanonet.tasks.documents import make_document
from nanonet.tasks.tokenization import TextTokenizer, length_quantiles
from nanonet.tasks.windows import DocumentEncoder, made_up_window

Use = Literal["both", "single", "batched"]
Key = TypeVar("Key", bound=Hashable)
Logits = NDArray[np.float32]

CHUNKS = (TOKENS_PER_CHUNK, TOKENS_PER_CHUNK // 2, TOKENS_PER_CHUNK * 2)
LENGTHS = "token_lengths"  # in the manifest's metrics: see `length_quantiles`
USUAL_LENGTHS = (8, 14, 20, 26, 32, 38, 44, 50, 58, 68, 82, 105, 150, 230)  # texts of a few lines
SINGLE_ROWS, BATCHED_TOKENS = 6, 2 * TOKENS_PER_CHUNK  # of one measurement
MOST_TEXTS, MOST_DOCUMENTS = 5000, 200  # that are looked at
ROUNDS = 9  # of measurements at most
HOPELESS = 1.3  # of the best median: what never came nearer is not measured again
TIE = 1.03  # of the best: within it the candidate named first is taken, not the luckier one
NOISE = 1e-3  # largest difference of a logit that counts as the same computation


@dataclass(frozen=True)
class Sample:
    """Rows to measure with: token ids, or windows of documents."""

    single: Sequence[Row]
    batched: Sequence[Row]


def make_sample(
    tokenizer: TextTokenizer | DocumentEncoder,
    lengths: Sequence[int],
    texts: Sequence[str | Sequence[str]] = (),
) -> Sample:
    """Return rows like the texts or, without any, random ids of the lengths given."""
    rows: Sequence[Row]
    if isinstance(tokenizer, TextTokenizer):
        rows = tokenizer.ids([str(text) for text in texts[:MOST_TEXTS]])
    else:
        documents = [make_document(text, tokenizer.language) for text in texts[:MOST_DOCUMENTS]]
        rows = tokenizer.encode(documents).ids
    if not rows:
        rng = np.random.default_rng(0)
        capped = [min(max(n, 1), tokenizer.max_length) for n in lengths]
        ids = [rng.integers(0, tokenizer.size, size=n) for n in capped]
        rows = ids if isinstance(tokenizer, TextTokenizer) else [made_up_window(i) for i in ids]
    order = np.argsort([len(row) for row in rows], kind="stable")
    picked = length_quantiles(np.arange(len(rows)), SINGLE_ROWS)
    single = [rows[order[i]] for i in picked]
    mean = max(1.0, float(np.mean([len(row) for row in rows])))
    count = max(2, math.ceil(BATCHED_TOKENS / mean))
    return Sample(single, [rows[order[i]] for i in length_quantiles(np.arange(len(rows)), count)])


def run_sample(
    engine: Engine, rows: Sequence[Row], tokens_per_chunk: int = TOKENS_PER_CHUNK
) -> Logits:
    """Return the logits of a sample's rows: (n, classes), or (U,) of windows."""
    windows = [row for row in rows if isinstance(row, Window)]
    if windows:
        return run_windows(engine, windows, tokens_per_chunk)
    ids = [row for row in rows if not isinstance(row, Window)]
    return run_rows(engine, ids, tokens_per_chunk)


def tune(
    bundle: Path,
    *,
    texts: Sequence[str | Sequence[str]] = (),
    threads: int = 0,
    use: Use = "both",
    min_agreement: float | None = None,
    seconds: float = 2.0,
    timer: Callable[[], float] = time.perf_counter,
) -> Tuning:
    """Measure how a bundle runs fastest here.

    Engines that do not give the default one's logits, but for float noise, are left out.

    Args:
        bundle: its folder.
        texts: like those that will come, for a summarizer also lists of sentences; else the
            manifest's ``token_lengths`` or usual lengths.
        threads: measure only so many; 0: 1, 2, 4 and so on up to the usable cores.
        use: whether single texts, many at once, or both alike shall be fast.
        min_agreement: share of the texts on which an engine of lower precision must choose the
            same class to be measured at all; None: no such engine.
        seconds: after so many no further round of measurements begins; there are three kinds.
        timer: a clock, in seconds.

    Raises:
        BundleError: no bundle, or it cannot be run.
        ConfigError: ``min_agreement`` for a summarizer.
    """
    return compare(
        {"": bundle},
        texts=texts,
        threads=threads,
        use=use,
        min_agreement=min_agreement,
        seconds=seconds,
        timer=timer,
    )[""]


def compare(
    bundles: Mapping[str, Path],
    *,
    texts: Sequence[str | Sequence[str]] = (),
    threads: int = 0,
    use: Use = "both",
    min_agreement: float | None = None,
    seconds: float = 2.0,
    timer: Callable[[], float] = time.perf_counter,
) -> dict[str, Tuning]:
    """Tune several bundles of one tokenizer in turns, so that their times can be compared.

    See `tune`. The times of a bundle's first choice are the ones to compare.
    """
    manifests = {name: read_manifest(folder) for name, folder in bundles.items()}
    first = next(iter(bundles))
    tokenizer = _read_tokenizer(bundles[first], manifests[first])
    if min_agreement is not None and manifests[first].task != "classification":
        raise ConfigError(
            "min_agreement is for classifiers, for which engines of lower precision are measured:"
            f" leave it out for the task {manifests[first].task}"
        )
    sample = make_sample(tokenizer, _lengths(manifests[first]), texts)
    engines = {
        (name, *key): engine
        for name, folder in bundles.items()
        for key, engine in _open_all(folder / MODEL, threads, sample, min_agreement).items()
    }
    found = _measure(engines, sample, use, seconds, timer)
    return {
        name: Tuning(
            FORMAT,
            conditions(manifest.files[MODEL]),
            ranked([choice for owner, choice in found if owner == name], use),
        )
        for name, manifest in manifests.items()
    }


def _measure(
    engines: Mapping[tuple[str, str, int], Engine],
    sample: Sample,
    use: Use,
    seconds: float,
    timer: Callable[[], float],
) -> list[tuple[str, Choice]]:
    """Return (bundle, choice) of the engines (bundle, name, threads) that are worth a look."""
    single = race({k: partial(_one_by_one, e, sample) for k, e in engines.items()}, seconds, timer)
    batched = race({k: partial(_at_once, e, sample) for k, e in engines.items()}, seconds, timer)
    usual: dict[str, list[Choice]] = {}
    for (bundle, name, threads), time_batched in batched.items():
        one = 1e3 * single[bundle, name, threads] / len(sample.single)
        many = 1e3 * time_batched / len(sample.batched)
        usual.setdefault(bundle, []).append(Choice(name, threads, TOKENS_PER_CHUNK, one, many))
    # Other chunks are tried only on the best engine for each number of threads.
    chunks = {
        (bundle, replace(choice, tokens_per_chunk=chunk)): partial(
            _at_once, engines[bundle, choice.engine, choice.threads], sample, chunk
        )
        for bundle, choices in usual.items()
        for choice in ranked(choices, use)
        for chunk in CHUNKS
    }
    return [
        (bundle, replace(choice, batched_ms=1e3 * time_batched / len(sample.batched)))
        for (bundle, choice), time_batched in race(chunks, seconds, timer).items()
    ]


def _one_by_one(engine: Engine, sample: Sample) -> None:
    for row in sample.single:
        run_sample(engine, [row])


def _at_once(engine: Engine, sample: Sample, tokens_per_chunk: int = TOKENS_PER_CHUNK) -> None:
    run_sample(engine, sample.batched, tokens_per_chunk)


def cost(choice: Choice, use: Use) -> float:
    """Return what is compared, in ms: the geometric mean of both uses, or the one asked for."""
    if use == "both":
        return math.sqrt(choice.single_ms * choice.batched_ms)
    return choice.single_ms if use == "single" else choice.batched_ms


def ranked(choices: Iterable[Choice], use: Use) -> list[Choice]:
    """Return the best choice of each number of threads, the best of all first.

    Of choices that cost the same within `TIE`, the first counts as the best.
    """
    left = list(choices)
    best = []
    while left:
        least = min(cost(c, use) for c in left)
        winner = next(c for c in left if cost(c, use) <= TIE * least)
        best.append(winner)
        left = [c for c in left if c.threads != winner.threads]
    return best


def race(
    tasks: Mapping[Key, Callable[[], object]], seconds: float, timer: Callable[[], float]
) -> dict[Key, float]:
    """Return the median seconds of each task.

    Tasks run in turns, so that a busy spell of the machine meets all of them; one that has never
    come within `HOPELESS` of the best median runs no more.
    """
    times: dict[Key, list[float]] = {key: [] for key in tasks}
    alive = list(tasks)
    end = timer() + seconds
    for turn in range(ROUNDS):
        for key in alive if turn % 2 == 0 else alive[::-1]:
            start = timer()
            tasks[key]()
            times[key].append(timer() - start)
        best = min(statistics.median(times[key]) for key in alive)
        alive = [key for key in alive if min(times[key]) <= HOPELESS * best]
        if timer() >= end:
            break
    return {key: statistics.median(found) for key, found in times.items()}


def _read_tokenizer(bundle: Path, manifest: Manifest) -> TextTokenizer | DocumentEncoder:
    json = (bundle / TOKENIZER).read_text(encoding="utf-8")
    if manifest.task != "summarization":
        return TextTokenizer(json, manifest.max_length)
    settings = build(SummarizationConfig, manifest.settings, "settings")
    return DocumentEncoder(json, manifest.max_length, settings)


def _lengths(manifest: Manifest) -> Sequence[int]:
    """Return token lengths that the texts of a bundle's user are likely to have."""
    found = manifest.metrics.get(LENGTHS)
    if isinstance(found, list) and found and all(type(n) is int and n > 0 for n in found):
        return found
    return USUAL_LENGTHS


def _open_all(
    model: Path, threads: int, sample: Sample, min_agreement: float | None
) -> dict[tuple[str, int], Engine]:
    """Return the engines to measure, by name and threads, the default first."""
    counts = [threads] if threads else _thread_counts(usable_cores())
    rows = sample.single if min_agreement is None else sample.batched
    expected = run_sample(open_engine(DEFAULT, model, counts[0]), rows)
    engines: dict[tuple[str, int], Engine] = {}
    for name in available_engines():
        exact = ENGINES.get(name).exact
        if not exact and min_agreement is None:
            continue
        for count in counts:
            try:
                engine = open_engine(name, model, count)
                logits = run_sample(engine, rows)
            except Exception:  # an engine that cannot run this model is no candidate
                if name == DEFAULT:
                    raise
                break
            if exact and not np.allclose(logits, expected, rtol=0, atol=NOISE):
                break
            if min_agreement is not None and agreement(logits, expected) < min_agreement:
                break
            engines[name, count] = engine
    return engines


def agreement(logits: Logits, others: Logits) -> float:
    """Return the share of rows in which two models' logits (n, classes) choose the same class."""
    return float((logits.argmax(-1) == others.argmax(-1)).mean())


def _thread_counts(cores: int) -> list[int]:
    """Return all cores, half, a quarter, and 1: few, for every engine that is open takes memory."""
    return sorted({cores, cores // 2, cores // 4, 1} - {0}, reverse=True)
