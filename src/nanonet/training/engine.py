"""The loop. One backward pass per phase serves all its learners (see `objectives.base`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanonet.core.config import Config
from nanonet.core.errors import RunError
from nanonet.data.batching import StepBatches
from nanonet.models.backbones import Backbone
from nanonet.models.cohort import TEACHER, Cohort
from nanonet.models.learner import Learner, LearnerOutput
from nanonet.objectives.base import SoftTargets, Stream
from nanonet.tasks.base import row_lengths, unit_counts, units_of
from nanonet.tasks.tokenization import Ids
from nanonet.training.checkpoint import Position
from nanonet.training.device import Hardware, release_memory
from nanonet.training.evaluation import autocast
from nanonet.training.guard import Guard
from nanonet.training.observers import LogRow, Observer, Pace
from nanonet.training.optim import (
    clip_gradients,
    make_optimizer,
    schedule_factor,
    set_learning_rates,
)
from nanonet.training.plan import Phase, Plan
from nanonet.training.processes import ALONE, Processes
from nanonet.training.profile import OFF, Profile, traced_steps
from nanonet.training.propagation import SoftLabels
from nanonet.training.rows import TrainingRows
from nanonet.training.spreading import better_in_sentences, spread_labels
from nanonet.training.step import Batch, PhaseStep
from nanonet.training.stopping import StopRequest
from nanonet.training.views import set_dropout


@dataclass
class Engine:
    """Trains a cohort by a plan.

    Attributes:
        soft_labels: what propagation said of ``rows.unlabeled``, once it was done.
        profile: measures where the time goes.
        processes: who shares the rows.
        guard: looks whether learners are sound; None: nobody does.
        backbone: the pretrained encoder, for `spread_labels`.
        optimizers: one per phase, by the phase's name.
        propagation_step: the step before which propagation is done; None: never.
        first_unlabeled_step: the first that learns from unlabelled rows; None: none does.
    """

    cohort: Cohort
    plan: Plan
    rows: TrainingRows
    config: Config
    hardware: Hardware
    soft_labels: SoftLabels | None = None
    profile: Profile = OFF
    processes: Processes = ALONE
    guard: Guard | None = None
    backbone: Backbone | None = None
    optimizers: dict[str, torch.optim.AdamW] = field(init=False)
    propagation_step: int | None = field(init=False)
    first_unlabeled_step: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = {p.name: make_optimizer(p, self.cohort) for p in self.plan.phases}
        training = self.config.training
        self.propagation_step = (
            round(self.config.propagation.at * training.steps)
            if self.plan.needs_soft_labels
            else None
        )
        windows = [p.window(training.steps) for p in self.plan.phases if "unlabeled" in p.streams]
        self.first_unlabeled_step = min((w.start for w in windows if w), default=None)
        self._views = {name: self.config.views.of(name) for name in self.cohort}
        for name, view in self._views.items():
            set_dropout(self.cohort[name], view.dropout)
            self.cohort[name].encoder.gradient_checkpointing = training.gradient_checkpointing
        unlabeled = self.rows.unlabeled if self.plan.reads_unlabeled else []
        self._units = unit_counts(self.rows.labeled), unit_counts(unlabeled)
        weights = self.rows.class_weights
        self._class_weights = (
            None if weights is None else torch.from_numpy(weights).to(self.hardware.device)
        )
        self._batches = StepBatches(
            row_lengths(self.rows.labeled),
            row_lengths(unlabeled),
            training.labeled_batch,
            training.unlabeled_batch,
            training.token_budget,
            self.config.seed,
        )

    def run(self, position: Position, observer: Observer, stop: StopRequest) -> Position:
        """Step from ``position`` to the end, or until asked to stop; return where it stands."""
        training = self.config.training
        for name, view in self._views.items():
            self.cohort[name].train(view.dropout > 0.0)
        pace = Pace()
        if self.profile.on:
            traced = traced_steps(position.step, training.steps, self._busy())
            self.profile.start(traced, self.hardware.device)
        stopping = self.processes.agree(stop.reason)
        while position.step < training.steps and not stopping:
            step = position.step
            self.profile.start_step(step)
            if step == self.propagation_step:
                with self.profile.span("propagation"):
                    self.soft_labels = self._propagate()
            if self.guard is not None and step == self.first_unlabeled_step:
                with self.profile.span("guard"):
                    self._prepare(self.guard)
                    self.guard.look(step, self.cohort)  # who is sound can be put back to this
            with self.profile.span("data"):
                batch = self._draw(step)
            self.profile.count(len(batch.labeled) + len(batch.unlabeled), batch.tokens)
            # For dropout, which each process draws for its own rows.
            torch.manual_seed(_step_seed(self.config.seed, step, self.processes.rank))
            losses: dict[str, float] = {}
            targets: dict[Stream, LearnerOutput] = {}
            for phase in self.plan.phases:
                losses |= self._run_phase(phase, batch, step, targets)
            _check_finite(losses, step + 1)
            self._look_after(step + 1)

            seconds = position.seconds + pace.lap(batch.tokens)
            position = position.after(losses, seconds)
            observer.on_step(position.step)
            stop.check_clock(position.seconds, training.max_minutes)
            stopping = self.processes.agree(stop.reason)
            release_memory()
            last = position.step == training.steps
            # A stop completes no log row: the sums travel on, so that a resumed run logs the same.
            if last or position.step % training.log_every == 0:
                observer.on_log(self._log_row(position, pace.rate()))
                position = replace(position, sums={}, counts={})
            if last or stopping or position.step % training.checkpoint_every == 0:
                observer.on_checkpoint(position)
                self.processes.wait()  # for the one that writes
                pace.restart()  # what observers do is not training time
        if self.processes.count > 1:
            stop.reason = stopping  # what came later came to this process only
        self.profile.end_trace()
        self.cohort.eval()
        return position

    def _busy(self) -> range:
        """Return the steps in which as many phases step as ever do, from the first such on."""
        steps = self.config.training.steps
        counts = [len(self._active(step)) for step in range(steps)]
        most = max(counts)
        first = counts.index(most)
        rest = (i for i in range(first, steps) if counts[i] < most)
        return range(first, next(rest, steps))

    def _draw(self, step: int) -> Batch:
        learnt, _ = self.within_reach()
        lengths = self._batches.unlabeled_lengths
        batches = replace(self._batches, unlabeled_lengths=lengths[learnt[: len(lengths)]])
        labeled, places = batches.draw(step)
        unlabeled = learnt[places]
        if not any("unlabeled" in phase.streams for phase in self._active(step)):
            unlabeled = unlabeled[:0]
        return Batch(
            [self.rows.labeled[i] for i in labeled],
            [self.rows.unlabeled[i] for i in unlabeled],
            torch.from_numpy(_taken(self.rows.labels, labeled, self._units[0])).to(
                self.hardware.device
            ),
            self.config.training.max_padding,
            self.hardware.device,
            self._targets(unlabeled),
            self.processes,
            self._class_weights,
        )

    def _active(self, step: int) -> list[Phase]:
        steps = self.config.training.steps
        return [p for p in self.plan.phases if p.progress(step, steps) is not None]

    def _targets(self, rows: Ids) -> SoftTargets | None:
        if self.soft_labels is None:
            return None
        both = (self.soft_labels.probabilities, self.soft_labels.confidence)
        parts = (_taken(values, rows, self._units[1]) for values in both)
        return SoftTargets(*(torch.from_numpy(a).to(self.hardware.device) for a in parts))

    def _propagate(self) -> SoftLabels:
        """Spread the labels in the teacher's space as it now is."""
        where = (self.config, self.hardware, self.processes, self.backbone)
        by_sentences = better_in_sentences(self._source(), self.rows, *where)
        return spread_labels(self._source(), self.rows, *where, by_sentences)

    def _source(self) -> Learner:
        """Return the learner in whose space labels spread: the teacher, if there is one."""
        return self.cohort[TEACHER if self.cohort.has_teacher else self.cohort.students[0]]

    def _prepare(self, guard: Guard) -> None:
        """Let the guard see what the labels say of the texts that it asks, placed as these are."""
        learnt, aside = self.within_reach()
        found = self.soft_labels
        by_sentences = found is not None and found.by_sentences is not None
        sentences = self.rows.sentences if by_sentences else None
        guard.refer(self._source(), aside if self.rows.aside else learnt, sentences)

    def _look_after(self, step: int) -> None:
        """Let the guard look, if it is time to; who was put back starts with new moments."""
        if self.guard is None or not self.guard.is_due(step, self.config.training.steps):
            return
        with self.profile.span("guard"):
            alarms = self.guard.look(step, self.cohort)
        for alarm in alarms:
            own = self.cohort[alarm.learner].own_parameters().values()
            for optimizer in self.optimizers.values():
                for parameter in own:
                    optimizer.state.pop(parameter, None)

    def _trust(self, learner: str) -> float:
        return 1.0 if self.guard is None else self.guard.trust(learner)

    def within_reach(self) -> tuple[Ids, Ids]:
        """Return the places of the unlabelled rows, and of those kept aside, that are learnt from
        and asked: all, until those are known that labels do not reach."""
        n = len(self.rows.unlabeled)
        reached = None if self.soft_labels is None else self.soft_labels.reached
        if reached is None:
            return np.arange(n), np.arange(len(self.rows.aside))
        return np.flatnonzero(reached[:n]), np.flatnonzero(reached[n:])

    def _run_phase(
        self, phase: Phase, batch: Batch, step: int, targets: dict[Stream, LearnerOutput]
    ) -> dict[str, float]:
        """Step one phase's optimizer; return the unweighted losses, none where it rests."""
        progress = phase.progress(step, self.config.training.steps)
        if progress is None:
            return {}
        view = PhaseStep(
            self.cohort,
            phase,
            batch,
            self._views,
            self.config.seed,
            step,
            self.config.training.steps,
            self.plan.parts,
            targets,
            self.profile,
        )
        values: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.hardware.device)
        with autocast(self.hardware):
            for learner in phase.learners:
                for name, objective in phase.objectives.items():
                    with self.profile.span("losses"):
                        loss = objective.loss(learner, view)
                    trust = self._trust(learner) if "unlabeled" in objective.streams else 1.0
                    total = total + trust * objective.weight_at(progress) * loss
                    values[f"{learner}.{name}"] = loss.detach()
        with self.profile.span("backward"):
            total.backward()  # type: ignore[no-untyped-call]
        with self.profile.span("optimizer"):
            self._update(phase, progress)
        return {name: float(value) for name, value in values.items()}

    def _update(self, phase: Phase, progress: float) -> None:
        own = [self.cohort[learner].own_parameters() for learner in phase.learners]
        # Every process has computed the heads' gradients as a whole.
        partial = [p for each in own for name, p in each.items() if not name.startswith("head.")]
        self.processes.add_gradients(partial)
        for each in own:
            clip_gradients(each.values(), phase.config.clip_norm)
        optimizer = self.optimizers[phase.name]
        factor = schedule_factor(phase.config, progress)
        set_learning_rates(optimizer, {n: factor * self._trust(n) for n in phase.learners})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _log_row(self, position: Position, tokens_per_second: float) -> LogRow:
        rates = {
            group["name"]: group["lr"]
            for phase in self._active(position.step - 1)  # what rests has no rate
            for group in self.optimizers[phase.name].param_groups
        }
        losses = {k: v / position.counts[k] for k, v in position.sums.items()}
        return LogRow(position.step, losses, rates, position.seconds, tokens_per_second)


def _taken(values: NDArray[Any], rows: Ids, counts: Ids) -> NDArray[Any]:
    """Return the values of the units of some rows.

    Args:
        values: of the units of all rows, (U, ...), or of each unit's labels, (U L, ...).
        rows: their positions.
        counts: units of every row.
    """
    total = int(counts.sum())
    each = len(values) // max(total, 1)
    of_units = values.reshape(total, each, *values.shape[1:])
    taken: NDArray[Any] = of_units[units_of(rows, counts)].reshape(-1, *values.shape[1:])
    return taken


def _check_finite(losses: Mapping[str, float], step: int) -> None:
    """Stop a run that has diverged before it overwrites a good checkpoint.

    Raises:
        RunError: a loss is infinite or not a number.
    """
    for name, value in losses.items():
        if not math.isfinite(value):
            raise RunError(
                f"training diverged: the loss {name} is {value} at step {step}; lower the learning"
                " rates and start over"
            )


def _step_seed(seed: int, step: int, rank: int) -> int:
    # The last number keeps it apart from the seeds of the views: SeedSequence pads with zeros.
    words = np.random.SeedSequence((seed, step, 2**31 + rank))
    return int(words.generate_state(1, np.uint64)[0] >> 1)
