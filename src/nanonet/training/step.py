"""One phase of one step: who reads which rows, computed once and only when asked for."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nanonet.core.config import ViewConfig
from nanonet.models.cohort import TEACHER, Cohort
from nanonet.models.learner import NO_PARTS, Chunk, ChunkView, Kind, LearnerOutput, Parts, Units
from nanonet.objectives.base import SoftTargets, Stream
from nanonet.tasks.base import Row, Window, row_lengths, unit_counts
from nanonet.tasks.tokenization import Ids, length_chunks, pad
from nanonet.tasks.windows import pad_windows
from nanonet.training.plan import Phase
from nanonet.training.processes import ALONE, Processes, Share
from nanonet.training.profile import OFF, Profile
from nanonet.training.views import is_plain, make_views, view_generator

Streams = frozenset[Stream]


def make_chunks(
    ids: Sequence[Row], max_padding: float, device: str, token_budget: int | None = None
) -> list[Chunk]:
    """Return rows as padded chunks of like length on ``device``."""

    def put(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.copy()).to(device)

    chunks = []
    for places in length_chunks(row_lengths(ids), max_padding, token_budget):
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
        processes: who shares the rows.
        class_weights: see `StepView.class_weights`.
    """

    labeled: list[Row]
    unlabeled: list[Row]
    labels: Tensor
    max_padding: float
    device: str
    soft_labels: SoftTargets | None = None
    processes: Processes = ALONE
    class_weights: Tensor | None = None
    _made: dict[Streams, list[Chunk]] = field(default_factory=dict)
    _shares: dict[Streams, Share] = field(default_factory=dict)

    def chunks(self, streams: Streams) -> list[Chunk]:
        """Return the rows of these streams in chunks, labelled rows counted first."""
        if streams not in self._made:
            rows = self._rows(streams)
            self._made[streams] = make_chunks(rows, self.max_padding, self.device)
        return self._made[streams]

    def share(self, streams: Streams) -> Share:
        """Return what this process computes of the chunks of these streams."""
        if streams not in self._shares:
            rows = self._rows(streams)
            lengths = row_lengths(rows)
            counts: dict[Kind, Ids] = {
                "units": unit_counts(rows),
                "tokens": lengths,
                "pairs": lengths**2,
            }
            there = {kind: torch.from_numpy(n).to(self.device) for kind, n in counts.items()}
            self._shares[streams] = Share(self.chunks(streams), there, self.processes)
        return self._shares[streams]

    @property
    def tokens(self) -> int:
        """Real tokens of all rows."""
        return self.size(frozenset({"labeled", "unlabeled"}))[1]

    def size(self, streams: Streams) -> tuple[int, int]:
        """Return the rows of these streams and their tokens."""
        rows = self._rows(streams)
        return len(rows), sum(len(row) for row in rows)

    def _rows(self, streams: Streams) -> list[Row]:
        rows = self.labeled if "labeled" in streams else []
        return rows + (self.unlabeled if "unlabeled" in streams else [])


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
        profile: measures where the time goes.
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
        profile: Profile = OFF,
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
        self._profile = profile

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
            share = self._share(streams)
            module = self._cohort[learner]
            with self._forward(learner, streams):
                chunks, labeled = self._batch.chunks(streams), "labeled" in streams
                views = self._views_of(learner, chunks, labeled, share.places)
                self._own[learner] = module.read(share.chunks, views, self._keep, share.gather)
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
            streams: Streams = frozenset({stream})
            share = self._share(streams)
            with torch.no_grad(), self._forward(learner, streams):
                self._targets[key] = module.read(share.chunks, None, self._keep, share.gather)
            module.train(was_training)
        return self._targets[key]

    def _share(self, streams: Streams) -> Share:
        with self._profile.span("data"):
            return self._batch.share(streams)

    def _forward(self, learner: str, streams: Streams) -> AbstractContextManager[None]:
        who = "teacher" if learner == TEACHER else "students"
        return self._profile.span(f"{who} forward", *self._batch.size(streams))

    def _views_of(
        self,
        learner: str,
        chunks: list[Chunk],
        labeled: bool,
        places: list[Tensor] | None = None,
    ) -> list[ChunkView] | None:
        """Return how a learner that trains sees these rows of the chunks; None: as they are."""
        view = self._views[learner]
        if is_plain(view):
            return None
        first = len(self._batch.labeled) if labeled else 0  # rows before it are labelled
        place = len(self.students) if learner == TEACHER else self.students.index(learner)
        generator = view_generator(self._seed, self._step, place)
        module = self._cohort[learner]
        return make_views(view, module, chunks, first, self._progress, generator, places)

    def _slice(self, output: LearnerOutput, stream: Stream) -> LearnerOutput:
        if len(self._phase.streams) == 1:
            return output
        lengths = [len(row) for row in self._batch.labeled]
        front = stream == "labeled"

        def part(values: Tensor, count: int) -> Tensor:
            return values[:count] if front else values[count:]

        tokens, pairs = sum(lengths), sum(n * n for n in lengths)
        units = int(unit_counts(self._batch.labeled).sum())
        questions = len(output.logits) // max(len(output.pooled), 1)
        return LearnerOutput(
            part(output.logits, units * questions),
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
