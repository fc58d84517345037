"""Scoring a summarizer, in a run or in a bundle, beside what any summarizer should beat."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import SummarizationConfig
from nanonet.data.checks import fingerprint
from nanonet.data.documents import DocumentTable
from nanonet.scoring.learners import leaks
from nanonet.tasks import baselines
from nanonet.tasks.budgets import Budget
from nanonet.tasks.rouge import METRICS, Rouge, rouge_of

RESAMPLES = 1000  # of the bootstrap
LEVEL = 0.95  # of its intervals
Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Margin:
    """How far the model is ahead of the best baseline by one metric, document by document.

    Attributes:
        over: the baseline.
        difference: of the means.
        interval: of the difference, see `bootstrap`.
    """

    over: str
    difference: float
    interval: Interval


@dataclass(frozen=True)
class SummaryScores:
    """What an evaluation found. ROUGE is F1, from 0 to 1, a mean over documents.

    Attributes:
        budget: of every summary.
        rouge: of the shipped learner, by metric.
        intervals: of those means, see `bootstrap`.
        baselines: lead, longest, random, centroid and oracle, by metric.
        margins: by metric; the oracle, which has seen the references, is no baseline here.
        examples: documents scored.
        seconds: of the shipped learner's scores, tokenization included.
        learners: of every learner, by metric; empty for a bundle.
        warnings: what makes the figures doubtful.
    """

    budget: str
    rouge: dict[str, float]
    intervals: dict[str, Interval]
    baselines: dict[str, dict[str, float]]
    margins: dict[str, Margin]
    examples: int
    seconds: float
    learners: dict[str, dict[str, float]]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return what ``nanonet evaluate --json`` prints."""
        row: dict[str, Any] = {
            **self.rouge,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            **self.baselines,
            "margins": {name: vars(margin) for name, margin in self.margins.items()},
            "budget": self.budget,
            "examples": self.examples,
            "seconds": round(self.seconds, 3),
        }
        return row | ({"learners": self.learners} if self.learners else {})


@dataclass(frozen=True)
class DocumentPredictions:
    """What the learners of a run say of the sentences of n documents.

    Attributes:
        logits: of the sentences of each document, by learner.
        seconds: by learner, tokenization included.
        selected: the shipped learner.
        settings: of the run.
        warnings: what makes figures on these documents doubtful.
    """

    logits: dict[str, list[Floats]]
    seconds: dict[str, float]
    selected: str
    settings: SummarizationConfig
    warnings: list[str]


def evaluate_bundle(
    path: Path, table: DocumentTable, budget: str | None = None, block_trigrams: bool | None = None
) -> SummaryScores:
    """Score a bundle on documents with references.

    Args:
        path: the bundle.
        table: documents and references.
        budget: None: as trained.
        block_trigrams: None: as trained.

    Raises:
        BundleError: see `Summarizer.load`.
        ConfigError: an unknown budget.
        MissingExtraError: see `Rouge` and `baselines.centroid`.
    """
    from nanonet.runtime.summarizer import Summarizer

    summarizer = Summarizer.load(path)
    measure = _Measure(table, summarizer.settings, budget, block_trigrams)
    start = time.perf_counter()
    logits = list(summarizer.score(table.documents))
    seconds = time.perf_counter() - start
    warnings = table.warnings() + leaks(table, {"labeled": summarizer.seen})
    return measure.scores(logits, seconds, {}, warnings)


def evaluate_run(
    path: Path, table: DocumentTable, budget: str | None = None, block_trigrams: bool | None = None
) -> SummaryScores:
    """Score all learners of a run on documents with references and note it in the run folder.

    Raises:
        RunError: not a finished run.
        BackboneError: its backbone is gone.
        ConfigError: an unknown budget.
        MissingExtraError: see `Rouge` and `baselines.centroid`.
    """
    if budget is not None:
        Budget.parse(budget)  # before anything is computed
    Rouge()
    return note_scores(path, table, predict_run(path, table), budget, block_trigrams)


def predict_run(path: Path, table: DocumentTable) -> DocumentPredictions:
    """Ask all learners of a run for the scores of all sentences.

    Raises:
        RunError: not a finished run.
        BackboneError: its backbone is gone.
    """
    from nanonet.core.machine import usable_cores
    from nanonet.export import load_cohort
    from nanonet.tasks.windows import DocumentEncoder
    from nanonet.training.device import Hardware
    from nanonet.training.evaluation import predict_logits
    from nanonet.training.run_folder import RunFolder

    run = RunFolder(path)
    selected = str(run.read_summary()["selected"])
    config, _ = run.read_config()
    cohort = load_cohort(run)
    hardware = Hardware("cpu", "fp32", "eager", usable_cores())
    start = time.perf_counter()
    encoder = DocumentEncoder(run.read_tokenizer(), config.data.max_length, config.summarization)
    encoded = encoder.encode(table.documents)
    tokenizing = time.perf_counter() - start
    logits: dict[str, list[Floats]] = {}
    seconds: dict[str, float] = {}
    for name in cohort:
        start = time.perf_counter()
        found = predict_logits(cohort[name], encoded.ids, hardware)
        logits[name] = encoded.merge(found[:, 1] - found[:, 0])
        seconds[name] = tokenizing + time.perf_counter() - start
    seen = {name: run.read_seen(name) for name in ("labeled", "unlabeled")}
    warnings = table.warnings() + leaks(table, seen)
    return DocumentPredictions(logits, seconds, selected, config.summarization, warnings)


def note_scores(
    path: Path,
    table: DocumentTable,
    found: DocumentPredictions,
    budget: str | None = None,
    block_trigrams: bool | None = None,
) -> SummaryScores:
    """Score the summaries that sentence scores make and note it in the run folder.

    Raises:
        RunError: the run folder cannot be written.
        ConfigError: an unknown budget.
        MissingExtraError: see `Rouge` and `baselines.centroid`.
    """
    from nanonet.training.run_folder import RunFolder

    measure = _Measure(table, found.settings, budget, block_trigrams)
    learners = {name: _means(measure.rouge_of(own)) for name, own in found.logits.items()}
    own, seconds = found.logits[found.selected], found.seconds[found.selected]
    scores = measure.scores(own, seconds, learners, found.warnings)
    RunFolder(path).append_evaluation(
        {"source": table.source, "fingerprint": fingerprint(table), "selected": found.selected}
        | scores.to_json()
        | {"warnings": scores.warnings}
    )
    return scores


class _Measure:
    """Documents and references, and the budget that every summary of them is held to."""

    def __init__(
        self,
        table: DocumentTable,
        settings: SummarizationConfig,
        budget: str | None,
        block_trigrams: bool | None,
    ) -> None:
        self._budget = Budget.parse(settings.budget if budget is None else budget)
        self._block = settings.block_trigrams if block_trigrams is None else block_trigrams
        self._rouge = Rouge()
        self._documents = [document.sentences for document in table.documents]
        self._references = table.summaries or []

    def rouge_of(self, scores: Iterable[Floats], block_trigrams: bool | None = None) -> Floats:
        """Return the ROUGE (documents, metrics) of the summaries that sentence scores make."""
        block = self._block if block_trigrams is None else block_trigrams
        return rouge_of(scores, self._documents, self._references, self._budget, block)

    def _baselines(self) -> dict[str, Floats]:
        texts = self._documents
        scores = {
            "lead": map(baselines.lead, texts),
            "longest": map(baselines.longest, texts),
            "random": (baselines.at_random(text, seed) for seed, text in enumerate(texts)),
            "centroid": map(baselines.centroid, texts),
        }
        found = {name: self.rouge_of(own, block_trigrams=False) for name, own in scores.items()}
        pairs = zip(texts, self._references, strict=True)
        return found | {"oracle": np.stack([self._oracle(*pair) for pair in pairs])}

    def _oracle(self, text: list[str], reference: list[str]) -> Floats:
        words = sum(len(sentence.split()) for sentence in text)
        chosen = self._rouge.oracle(reference, text, self._budget.limits(words))
        return self._rouge.score(reference, [text[i] for i in chosen])

    def scores(
        self,
        logits: list[Floats],
        seconds: float,
        learners: dict[str, dict[str, float]],
        warnings: list[str],
    ) -> SummaryScores:
        """Return the figures of the shipped learner beside the baselines."""
        own, others = self.rouge_of(logits), self._baselines()
        margins, intervals = {}, {}
        for k, metric in enumerate(METRICS):
            intervals[metric] = bootstrap(own[:, k])
            rivals = {name: rows[:, k] for name, rows in others.items() if name != "oracle"}
            best = max(rivals, key=lambda name: float(rivals[name].mean()))
            ahead = own[:, k] - rivals[best]
            margins[metric] = Margin(best, round(float(ahead.mean()), 6), bootstrap(ahead))
        return SummaryScores(
            budget=str(self._budget),
            rouge=_means(own),
            intervals=intervals,
            baselines={name: _means(rows) for name, rows in others.items()},
            margins=margins,
            examples=len(own),
            seconds=seconds,
            learners=learners,
            warnings=warnings,
        )


def bootstrap(values: Floats, seed: int = 0) -> Interval:
    """Return the 95% percentile interval of the mean of values (n,), n drawn with replacement."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return round(float(low), 6), round(float(high), 6)


def _means(rows: Floats) -> dict[str, float]:
    return {name: round(float(v), 6) for name, v in zip(METRICS, rows.mean(0), strict=True)}
