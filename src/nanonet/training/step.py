"""One phase of one step: who reads which rows, computed once and only when asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nanonet.core.config import ViewConfig
from nanonet.models.cohort import (
    NO_PARTS,
    TEACHER,
    Chunk,
    ChunkView,
    Cohort,
    LearnerOutput,
    Parts,
    Units,
)
from nanonet.objectives.base import SoftTargets, Stream
from nanonet.tasks.base import Row, Window, unit_counts
from nanonet.tasks.tokenization import length_chunks, pad
from nanonet.tasks.windows import pad_windows
from nanonet.training.plan import Phase
from nanonet.training.views import is_plain, make_views, view_generator

Streams = frozenset[Stream]


def make_chunks(
    ids: Sequence[Row], max_padding: float, device: str, token_budget: int | None = None
) -> list[Chunk]:
    """Return rows as padded chunks of like length on ``device``."""

    def put(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.copy()).to(device)

    chunks = []
    for places in length_chunks([len(row) for row in ids], max_padding, token_budget):
        rows = [ids[i] for i in places]
        input_ids, mask = pad([row.ids if isinstance(row, Window) else row for row in rows])
        windows = [row for row in rows if isinstance(row, Window)]
        units = None
        if windows:
            arrays = pad_windows(windows)
            parts = (arrays[name] for name in ("token_type_ids", "pooling", "features"))
            units = Units(*map(put, (*parts, unit_counts(windows))))
        chunks.append(Chunk(put(places), put(input_ids), put(mask), units))
    return chunks


@dataclass(frozen=True)
class Batch:
    """The rows of one step.

    Attributes:
        labeled: the labelled rows.
        unlabeled: the unlabelled rows.
        labels: class indexes of the labelled rows' units, (U,), on the device.
        max_padding: see `length_chunks`.
        device: where the chunks go.
        soft_labels: propagated labels of the unlabelled rows' units, once there are some.
        class_weights: see `StepView.class_weights`.
    """

    labeled: list[Row]
    unlabeled: list[Row]
    labels: Tensor
    max_padding: float
    device: str
    soft_labels: SoftTargets | None = None
    class_weights: Tensor | None = None
    _made: dict[Streams, list[Chunk]] = field(default_factory=dict)

    def chunks(self, streams: Streams) -> list[Chunk]:
        """Return the rows of these streams in chunks, labelled rows counted first."""
        if streams not in self._made:
            rows = self.labeled if "labeled" in streams else []
            rows = rows + (self.unlabeled if "unlabeled" in streams else [])
            self._made[streams] = make_chunks(rows, self.max_padding, self.device)
        return self._made[streams]

    @property
    def tokens(self) -> int:
        """Real tokens of all rows."""
        return sum(len(row) for row in (*self.labeled, *self.unlabeled))


class PhaseStep:
    """The `StepView` of one phase of one step.

    A learner that trains in the phase reads all rows that the phase needs in one go; whatever
    another learner gives is detached. Outputs are kept until the phase ends: after the optimizer
    has stepped they would be stale.

    Args:
        cohort: all learners.
        phase: who trains, on what.
        batch: the rows.
        views: by learner, what it sees of unlabelled rows when it trains.
        seed: of the run.
        step: number of the step, from 0.
        steps: number of steps in all.
        keep: what outputs hold beside logits and pooled vectors.
        teacher_targets: the teacher's outputs by stream, handed from phase to phase of one step: a
            teacher that has read the rows to learn from them need not read them again to be a
            target. Such targets are from before its update.
    """

    def __init__(
        self,
        cohort: Cohort,
        phase: Phase,
        batch: Batch,
        views: Mapping[str, ViewConfig],
        seed: int,
        step: int,
        steps: int,
        keep: Parts = NO_PARTS,
        teacher_targets: dict[Stream, LearnerOutput] | None = None,
    ) -> None:
        self._cohort = cohort
        self._phase = phase
        self._batch = batch
        self._views = views
        self._seed = seed
        self._step = step
        self._progress = step / steps
        self._keep = keep
        self._own: dict[str, LearnerOutput] = {}
        self._targets: dict[tuple[str, Stream], LearnerOutput] = {}
        self._teacher_targets = {} if teacher_targets is None else teacher_targets

    @property
    def labels(self) -> Tensor:
        """See `StepView.labels`."""
        return self._batch.labels

    @property
    def class_weights(self) -> Tensor | None:
        """See `StepView.class_weights`."""
        return self._batch.class_weights

    @property
    def soft_labels(self) -> SoftTargets:
        """See `StepView.soft_labels`."""
        assert self._batch.soft_labels is not None, "the plan starts such phases after propagation"
        return self._batch.soft_labels

    @property
    def students(self) -> list[str]:
        """See `StepView.students`."""
        return self._cohort.students

    def layer_map(self, learner: str) -> tuple[int, ...]:
        """See `StepView.layer_map`."""
        return self._cohort[learner].layer_map

    def own(self, learner: str, stream: Stream) -> LearnerOutput:
        """See `StepView.own`."""
        streams = self._phase.streams
        if stream not in streams:
            raise ValueError(f"an objective of phase {self._phase.name} reads undeclared {stream}")
        if learner not in self._own:
            chunks = self._batch.chunks(streams)
            views = self._views_of(learner, chunks, "labeled" in streams)
            module = self._cohort[learner]
            self._own[learner] = module.read(chunks, views, self._keep)
            # Without dropout and on the text as it is, what was read is as good as a target.
            if learner == TEACHER and not module.training and views is None:
                for part in streams:
                    target = _detach(self._slice(self._own[learner], part))
                    self._teacher_targets[part] = target
        return self._slice(self._own[learner], stream)

    def teacher(self, stream: Stream) -> LearnerOutput:
        """See `StepView.teacher`."""
        if stream not in self._teacher_targets:
            self._teacher_targets[stream] = self._target(TEACHER, stream)
        return self._teacher_targets[stream]

    def peer(self, learner: str, stream: Stream) -> LearnerOutput:
        """See `StepView.peer`."""
        if learner in self._phase.learners:
            return _detach(self.own(learner, stream))
        return self._target(learner, stream)

    def clean(self, learner: str, stream: Stream) -> LearnerOutput:
        """See `StepView.clean`."""
        return self.teacher(stream) if learner == TEACHER else self._target(learner, stream)

    def _target(self, learner: str, stream: Stream) -> LearnerOutput:
        key = (learner, stream)
        if key not in self._targets:
            module = self._cohort[learner]
            was_training = module.training
            module.eval()
            with torch.no_grad():
                chunks = self._batch.chunks(frozenset({stream}))
                self._targets[key] = module.read(chunks, None, self._keep)
            module.train(was_training)
        return self._targets[key]

    def _views_of(self, learner: str, chunks: list[Chunk], labeled: bool) -> list[ChunkView] | None:
        """Return how a learner that trains sees the chunks; None: as they are."""
        view = self._views[learner]
        if is_plain(view):
            return None
        first = len(self._batch.labeled) if labeled else 0  # rows before it are labelled
        place = len(self.students) if learner == TEACHER else self.students.index(learner)
        generator = view_generator(self._seed, self._step, place)
        module = self._cohort[learner]
        return make_views(view, module, chunks, first, self._progress, generator)

    def _slice(self, output: LearnerOutput, stream: Stream) -> LearnerOutput:
        if len(self._phase.streams) == 1:
            return output
        lengths = [len(row) for row in self._batch.labeled]
        front = stream == "labeled"

        def part(values: Tensor, count: int) -> Tensor:
            return values[:count] if front else values[count:]

        tokens, pairs = sum(lengths), sum(n * n for n in lengths)
        units = int(unit_counts(self._batch.labeled).sum())
        return LearnerOutput(
            part(output.logits, units),
            part(output.pooled, units),
            tuple(part(state, tokens) for state in output.hidden_states),
            {k: tuple(part(m, pairs) for m in maps) for k, maps in output.attention.items()},
        )


def _detach(output: LearnerOutput) -> LearnerOutput:
    return LearnerOutput(
        output.logits.detach(),
        output.pooled.detach(),
        tuple(state.detach() for state in output.hidden_states),
        {k: tuple(m.detach() for m in maps) for k, maps in output.attention.items()},
    )
