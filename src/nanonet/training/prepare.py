"""Getting ready: from tables and a backbone to an engine that can step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nanonet.core.config import Config, TrainingConfig
from nanonet.core.errors import RunError
from nanonet.models.backbones import Backbone
from nanonet.models.cohort import Cohort, build_cohort, learner_plans
from nanonet.tasks.base import EncodedTable, HeadStart, Row, Task
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.stored import StoredRows, random_rows
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training.checkpoint import read_tensors
from nanonet.training.device import Hardware, own_chance_and_threads, shrink_frozen
from nanonet.training.engine import Engine
from nanonet.training.guard import Guard, make_guard
from nanonet.training.names import NAME_TEMPLATE, name_rows, names_tell
from nanonet.training.passages import Sentences, are_long, sentences_of
from nanonet.training.plan import make_plan
from nanonet.training.processes import ALONE, Processes
from nanonet.training.rows import TrainingRows
from nanonet.training.run_folder import RunFolder
from nanonet.training.weights import class_weights

PROPAGATION_TEXTS = 4000  # unlabelled texts that are kept where there are more than steps reach
# Unlabelled texts that nobody learns from after the warm-up: on what learners have learnt they
# agree, right or wrong. One in eight up to so many; too few would tell nothing.
ASIDE_SHARE, MOST_ASIDE, FEWEST_ASIDE = 1 / 8, 512, 64


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to step.

    Attributes:
        aside: unlabelled rows that are not learnt from; none with validation rows.
    """

    cohort: Cohort
    engine: Engine
    hardware: Hardware
    tables: dict[str, EncodedTable]
    truncated: dict[str, int]
    task: Task[Any]
    start: HeadStart
    aside: Sequence[Row]


def prepare(
    config: Config,
    backbone: Backbone,
    hardware: Hardware,
    encoded: dict[str, EncodedTable],
    labels: LabelSet,
    task: Task[Any],
    init: Path | None,
    own_weights: Mapping[str, Tensor] | None = None,
    processes: Processes = ALONE,
) -> Prepared:
    """Return a run ready to step: cohort built, on its device.

    Args:
        config: everything that shapes the run.
        backbone: the pretrained encoder.
        hardware: see `choose_hardware`.
        encoded: the tables by name.
        labels: the classes.
        task: what the learners learn.
        init: an earlier run to start from.
        own_weights: see `build_cohort`.
        processes: who shares the rows.

    Raises:
        RunError: ``init`` cannot be started from.
        ConfigError: see `build_cohort`, `make_plan` and `class_weights`.
    """
    if init is not None:
        _check_start(init, config, backbone, labels)
        own_weights = RunFolder(init).read_warmup()
    cohort = build_cohort(backbone, config, len(labels), own_weights)
    if init is not None:
        _start_from(cohort, init)
    if hardware.precision == "bf16":
        shrink_frozen(cohort)
    cohort.to(hardware.device)
    start = HeadStart()
    if init is None:
        with own_chance_and_threads(hardware.threads):
            start = task.start_heads(cohort, encoded["labeled"], hardware, config.seed)
    unlabeled: Sequence[Row] = []
    aside: Sequence[Row] = []
    if "unlabeled" in encoded:
        pool = encoded["unlabeled"].encoded.ids
        kept = 0 if "validation" in encoded else aside_count(len(pool))
        unlabeled, aside = divide(pool, kept, config.training, config.seed)
    truth = encoded["labeled"].truth
    weights = class_weights(config, labels, truth)
    texts: Sequence[Row] = encoded["labeled"].encoded.ids
    names = _names(config, backbone, cohort, texts, truth, labels, hardware)
    learnt = np.concatenate([truth, np.arange(len(names))])
    prompts = _name_prompts(config, backbone, labels) if names else []
    sentences = _sentences(config, backbone, unlabeled)
    rows = TrainingRows([*texts, *names], learnt, unlabeled, weights, aside, prompts, sentences)
    plan = make_plan(config, has_unlabeled=bool(unlabeled))
    engine = Engine(cohort, plan, rows, config, hardware, processes=processes, backbone=backbone)
    engine.guard = _guard(engine)
    truncated = {name: table.encoded.truncated for name, table in encoded.items()}
    return Prepared(cohort, engine, hardware, encoded, truncated, task, start, aside)


def _names(
    config: Config,
    backbone: Backbone,
    cohort: Cohort,
    texts: Sequence[Row],
    truth: NDArray[np.int64],
    labels: LabelSet,
    hardware: Hardware,
) -> list[Row]:
    """Return the classes' names as texts to learn from; none where they tell nothing."""
    if not config.training.name_examples or config.task != "classification":
        return []
    names = name_rows(labels.names, TextTokenizer(backbone.tokenizer_json, config.data.max_length))
    source = cohort[next(iter(cohort))]
    return names if names and names_tell(names, texts, truth, source, hardware) else []


def _guard(engine: Engine) -> Guard | None:
    """Return who looks after the learners of a run; None: nobody does."""
    config, rows = engine.config, engine.rows
    if config.task != "classification" or not engine.plan.reads_unlabeled:
        return None
    if config.guard.every == 0.0:
        return None
    asked = rows.aside or rows.unlabeled
    where = (engine.hardware, engine.processes)
    return make_guard(rows.labeled, rows.labels, asked, config, *where)


def _name_prompts(config: Config, backbone: Backbone, labels: LabelSet) -> list[Row]:
    """Return what texts are held against when labels spread; none where names have no say."""
    if not config.propagation.names:
        return []
    tokenizer = TextTokenizer(backbone.tokenizer_json, config.data.max_length)
    return name_rows(labels.names, tokenizer, NAME_TEMPLATE)


def _sentences(config: Config, backbone: Backbone, unlabeled: Sequence[Row]) -> Sentences | None:
    """Return how texts fall into sentences; None where they are placed whole."""
    if config.task != "classification" or not config.propagation.sentences:
        return None
    return sentences_of(backbone.tokenizer_json) if are_long(unlabeled) else None


def aside_count(unlabeled: int) -> int:
    """Return how many of the unlabelled rows are kept aside."""
    count = min(MOST_ASIDE, int(ASIDE_SHARE * unlabeled))
    return count if count >= FEWEST_ASIDE else 0


def divide(
    rows: Sequence[Row], aside: int, training: TrainingConfig, seed: int
) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return the unlabelled rows to learn from, and so many others.

    Those to learn from are what the steps can reach, or enough to propagate labels along: steps
    draw a limited number of texts, and propagation would place all others too.
    """
    wanted = max(training.steps * training.unlabeled_batch, PROPAGATION_TEXTS)
    if len(rows) <= wanted and aside == 0:
        return rows, []
    places = random_rows(len(rows), aside + wanted, seed)
    return _taken(rows, np.sort(places[aside:])), _taken(rows, places[:aside])


def _taken(rows: Sequence[Row], places: NDArray[np.int64]) -> Sequence[Row]:
    return rows.take(places) if isinstance(rows, StoredRows) else [rows[i] for i in places]


def _check_start(init: Path, config: Config, backbone: Backbone, labels: LabelSet) -> None:
    """Refuse an earlier run whose learners are not shaped as this run's.

    Raises:
        RunError: the run is not finished, or has another backbone, other classes or students.
    """
    run = RunFolder(init)
    summary, (saved, inputs) = run.read_summary(), run.read_config()
    plans = learner_plans(config.cohort, backbone.layers)
    same = {
        "task": saved.task == config.task,
        "backbone": inputs.get("backbone_fingerprint") == backbone.fingerprint,
        "classes": run.read_labels().values == labels.values,
        "layer maps": summary["layer_maps"] == {n: list(m) for n, (m, _) in plans.items()},
        "student width": saved.cohort.student_width == config.cohort.student_width,
    }
    if different := [name for name, is_same in same.items() if not is_same]:
        raise RunError(f"cannot start from run {init}: it has other {' and '.join(different)}")


def _start_from(cohort: Cohort, init: Path) -> None:
    """Put the trained tensors of an earlier run in place.

    Raises:
        RunError: they are damaged, or it has trained others.
    """
    try:
        cohort.load_own_tensors(read_tensors(RunFolder(init).learners))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot start from run {init}: {error}") from None
