"""Warm-up distillation: before any label is used, students learn to stand in for the teacher.

On unlabelled text alone, each student imitates the representations of the pretrained backbone. The
result depends on the backbone, the texts and few settings, so that it is kept in a cache for other
runs (``NANONET_CACHE``, or ``nanonet`` in the user's cache folder).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nanonet.core.config import Config, PhaseConfig, PropagationConfig, ViewsConfig
from nanonet.core.errors import InterruptedRunError
from nanonet.core.files import write_bytes
from nanonet.core.machine import cache_folder
from nanonet.models.backbones import load_backbone
from nanonet.models.cohort import TEACHER, Cohort, build_cohort
from nanonet.models.learner import Learner
from nanonet.tasks.base import Row
from nanonet.tasks.stored import MOST_SHUFFLED
from nanonet.training.checkpoint import (
    Position,
    list_checkpoints,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
)
from nanonet.training.device import Hardware, attention_of, shrink_frozen
from nanonet.training.display import Display, run_shown
from nanonet.training.engine import Engine
from nanonet.training.observers import LogRow
from nanonet.training.plan import WARMUP, Phase, Plan, learner_names, warmup_objectives
from nanonet.training.prepare import divide
from nanonet.training.processes import ALONE, Processes
from nanonet.training.profile import OFF, Profile
from nanonet.training.rows import TrainingRows
from nanonet.training.run_folder import RunFolder

MOST_KEPT = 8  # entries of the cache: those used last; each is as large as what was trained
TIME_SHARE = 1 / 3  # of the run's time limit, at most
WARMUP_PADDING = 0.5  # padding per real token in a chunk at most
VERSION = 2  # of what a cache entry holds: raise it when the computation changes


@dataclass(frozen=True)
class Warmup:
    """What a warm-up has made of the students.

    Attributes:
        tensors: by ``<learner>.<parameter>``.
        seconds: that it took; 0 from the cache.
        steps: that were done.
    """

    tensors: dict[str, Tensor]
    seconds: float
    steps: int = 0


def warmup_plan(config: Config) -> Plan:
    """Return the one phase of a warm-up.

    Raises:
        ConfigError: see `build_objectives`; an objective that needs labels or a trained teacher.
    """
    settings = config.warmup
    students = tuple(name for name in learner_names(config.cohort) if name != TEACHER)
    phase = PhaseConfig(
        learners="students",
        learning_rate=settings.learning_rate,
        head_learning_rate=settings.learning_rate,  # of the projection; no objective moves a head
        schedule=settings.schedule,
        warmup=settings.warmup,
        clip_norm=settings.clip_norm,
    )
    return Plan((Phase(WARMUP, students, warmup_objectives(config), phase),), ())


def warm_up(
    config: Config,
    run: RunFolder,
    hardware: Hardware,
    unlabeled: Sequence[Row],
    fingerprint: str,
    display: Display,
    profile: Profile = OFF,
    processes: Processes = ALONE,
) -> Warmup:
    """Return what a warm-up makes of the students: from the cache, or by training.

    Args:
        config: of the run.
        run: holds the progress, and the result in the end.
        hardware: see `choose_hardware`.
        unlabeled: rows.
        fingerprint: of backbone, its pooling, and texts.
        display: where messages and progress go.
        profile: measures where the time goes.
        processes: who shares the rows; one of them reads and writes the cache.

    Raises:
        InterruptedRunError: stopped by Ctrl-C after saving a checkpoint.
    """
    done = run.read_warmup()
    processes.wait()  # all have seen whether it was there, before one of them writes it
    if done is not None:
        facts = run.describe_warmup() or {"seconds": 0.0}
        return Warmup(done, facts["seconds"])
    cache: Path | None = None
    if config.warmup.cache and processes.main:
        cache = _cache_file(config, hardware, fingerprint, processes.count)
    if cache is not None and (kept := _read_cache(cache, display)) is not None:
        run.write_warmup(kept, config.warmup.steps, 0.0, cached=True)
        display.say(f"warm-up: taken from {cache}")
    processes.wait()
    if (done := run.read_warmup()) is not None:
        return Warmup(done, 0.0)
    found = _train(config, run, hardware, unlabeled, display, profile, processes)
    if processes.main:
        _keep(run, found, config.warmup.steps, cache, display)
    processes.wait()
    return found


def _read_cache(cache: Path, display: Display) -> dict[str, Tensor] | None:
    """Return an entry, and make it the one used last; None where there is none to use."""
    try:
        found = read_tensors(cache)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        display.warn(f"{cache} is damaged: warming up again")
        return None
    except OSError as error:
        display.warn(f"{cache} cannot be read: {error.strerror or error}; warming up again")
        return None
    with suppress(OSError):  # another's, or another run has just made room
        os.utime(cache)
    return found


def _prune(folder: Path) -> None:
    """Delete all but the entries used last."""
    with suppress(OSError):  # another run does so too
        entries = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for old in entries[:-MOST_KEPT]:
            old.unlink(missing_ok=True)


def _keep(run: RunFolder, found: Warmup, steps: int, cache: Path | None, display: Display) -> None:
    """Write what a warm-up has found, for this run and, after all its steps, for others."""
    run.write_warmup(found.tensors, found.steps, found.seconds, cached=False)
    shutil.rmtree(run.warmup.path, ignore_errors=True)  # its checkpoints have served
    if cache is not None and found.steps == steps:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(cache, run.warmup_result.read_bytes())
        except OSError as error:
            display.warn(f"warm-up not kept for other runs: {cache}: {error.strerror or error}")
        _prune(cache.parent)


def _train(
    config: Config,
    run: RunFolder,
    hardware: Hardware,
    unlabeled: Sequence[Row],
    display: Display,
    profile: Profile,
    processes: Processes,
) -> Warmup:
    own = _own_config(config)
    plan = warmup_plan(config)
    # A backbone of its own: holding frozen matrices in bf16 must not touch the run's.
    attention = attention_of(hardware, plan.watches_attention)
    backbone = load_backbone(config.backbone.name, config.backbone.pooling, attention)
    cohort = build_cohort(backbone, own, classes=2)  # the heads are not used
    if hardware.precision == "bf16":
        shrink_frozen(cohort)
    cohort.to(hardware.device)
    if len(unlabeled) > MOST_SHUFFLED:
        unlabeled, _ = divide(unlabeled, 0, own.training, own.seed)
    rows = TrainingRows([], np.empty(0, np.int64), unlabeled)
    engine = Engine(cohort, plan, rows, own, hardware, profile=profile, processes=processes)
    position = Position(0, 0.0, {}, {})
    if checkpoints := list_checkpoints(run.warmup.checkpoints):
        position = load_checkpoint(checkpoints[-1], cohort, engine.optimizers)
    if processes.main:
        run.warmup.checkpoints.mkdir(parents=True, exist_ok=True)
        run.warmup.cut_metrics(position.step)
    recorder = _Recorder(run.warmup, engine, display)
    position, stopped = run_shown(engine, position, recorder, display, "warm-up")
    if stopped == "time limit" and position.step < own.training.steps:
        display.warn(
            f"warm-up stopped after step {position.step} of {own.training.steps}, to leave most of"
            " the time limit to what follows"
        )
    elif stopped == "interrupted":
        raise InterruptedRunError(
            f"stopped in the warm-up after step {position.step} of {own.training.steps}; continue"
            f" with --resume (run {run.path})"
        )
    return Warmup(_outcome(cohort), position.seconds, position.step)


def _own_config(config: Config) -> Config:
    """Return the configuration of the warm-up itself."""
    settings = config.warmup
    training = replace(
        config.training,
        steps=settings.steps,
        unlabeled_batch=settings.unlabeled_batch,
        max_minutes=TIME_SHARE * config.training.max_minutes,
        # Every chunk adds to the gradients of all weights, which costs more than padding.
        max_padding=max(config.training.max_padding, WARMUP_PADDING),
    )
    # The imitated teacher is the backbone as it is: it is there even where the run has none.
    cohort = replace(config.cohort, teacher=True, teacher_peft="head", student_peft=settings.peft)
    return replace(
        config,
        seed=settings.seed,
        cohort=cohort,
        training=training,
        views=ViewsConfig(),
        propagation=PropagationConfig(),
        phases={},
    )


def _outcome(cohort: Cohort) -> dict[str, Tensor]:
    """Return the weights that the students no longer share, heads apart."""
    return {
        f"{name}.{key}": tensor
        for name in cohort.students
        for key, tensor in _own_weights(cohort[name]).items()
    }


def _own_weights(learner: Learner) -> dict[str, Tensor]:
    frozen = {id(p) for p in learner.parameters() if not p.requires_grad}
    shared = set() if learner.projection is not None else frozen  # narrow: nothing is shared
    weights = dict(learner.merged().named_parameters())
    if learner.projection is not None:
        weights |= {f"projection.{n}": p for n, p in learner.projection.named_parameters()}
    return {
        name: p.detach().float()
        for name, p in weights.items()
        if id(p) not in shared and not name.startswith("head.")
    }


def _cache_file(config: Config, hardware: Hardware, fingerprint: str, processes: int) -> Path:
    """Return where the result is kept; the name tells everything that it depends on."""
    own = _own_config(config)
    depends: Mapping[str, Any] = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "warmup": asdict(config.warmup) | {"cache": True, "more_steps": False},
        "cohort": asdict(own.cohort),
        "lora": asdict(own.lora),
        "max_length": config.data.max_length,
        "task": [config.task, asdict(config.summarization)],  # how texts become rows
        "token_budget": config.training.token_budget,
        "max_padding": own.training.max_padding,
        "hardware": asdict(hardware),
    }
    if processes > 1:
        depends = {**depends, "processes": processes}
    text = json.dumps(depends, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return cache_folder() / WARMUP / f"{name}.safetensors"


class _Recorder:
    """Writes log rows and checkpoints of a warm-up."""

    def __init__(self, folder: RunFolder, engine: Engine, display: Display) -> None:
        self._folder = folder
        self._engine = engine
        self._display = display
        self.on_step = display.on_step

    def on_log(self, row: LogRow) -> None:
        """See `observers.Observer`."""
        if self._engine.processes.main:
            self._folder.append_metrics({"kind": WARMUP, **asdict(row)})
        self._display.on_log(row)

    def on_checkpoint(self, position: Position) -> None:
        """See `observers.Observer`."""
        engine = self._engine
        if not engine.processes.main:
            return
        with engine.profile.span("checkpoint"):
            save_checkpoint(self._folder.checkpoints, position, engine.cohort, engine.optimizers)
