"""Getting ready: from tables and a backbone to an engine that can step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nanonet.core.config import Config
from nanonet.core.errors import RunError
from nanonet.models.backbones import Backbone
from nanonet.models.cohort import Cohort, build_cohort, learner_plans
from nanonet.tasks.base import EncodedTable, Row, Task
from nanonet.tasks.labels import LabelSet
from nanonet.training.checkpoint import read_tensors
from nanonet.training.device import Hardware, shrink_frozen
from nanonet.training.engine import Engine, TrainingRows
from nanonet.training.plan import make_plan
from nanonet.training.run_folder import RunFolder
from nanonet.training.weights import class_weights

PROPAGATION_TEXTS = 4000  # unlabelled texts that are kept where there are more than steps reach


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to step."""

    cohort: Cohort
    engine: Engine
    hardware: Hardware
    tables: dict[str, EncodedTable]
    truncated: dict[str, int]
    task: Task[Any]


def prepare(
    config: Config,
    backbone: Backbone,
    hardware: Hardware,
    encoded: dict[str, EncodedTable],
    labels: LabelSet,
    task: Task[Any],
    init: Path | None,
    own_weights: Mapping[str, Tensor] | None = None,
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
    unlabeled = _within_reach(encoded["unlabeled"], config) if "unlabeled" in encoded else []
    truth = encoded["labeled"].truth
    weights = class_weights(config, labels, truth)
    rows = TrainingRows(encoded["labeled"].encoded.ids, truth, unlabeled, weights)
    plan = make_plan(config, has_unlabeled=bool(unlabeled))
    engine = Engine(cohort, plan, rows, config, hardware)
    truncated = {name: table.encoded.truncated for name, table in encoded.items()}
    return Prepared(cohort, engine, hardware, encoded, truncated, task)


def _within_reach(table: EncodedTable, config: Config) -> Sequence[Row]:
    """Return the unlabelled rows that the steps can reach, or enough to propagate labels along.

    Steps draw a limited number of texts; without this, propagation would place all others too.
    """
    ids = table.encoded.ids
    wanted = max(config.training.steps * config.training.unlabeled_batch, PROPAGATION_TEXTS)
    if len(ids) <= wanted:
        return ids
    rows = np.random.default_rng((config.seed, len(ids))).permutation(len(ids))[:wanted]
    return [ids[i] for i in np.sort(rows)]


def _check_start(init: Path, config: Config, backbone: Backbone, labels: LabelSet) -> None:
    """Refuse an earlier run whose learners are not shaped as this run's.

    Raises:
        RunError: the run is not finished, or has another backbone, other classes or students.
    """
    run = RunFolder(init)
    summary, (saved, inputs) = run.read_summary(), run.read_config()
    plans = learner_plans(config.cohort, backbone.layers)
    same = {
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
