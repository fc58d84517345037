"""Many processes that train one run together, as ``accelerate launch`` and ``torchrun`` start them.

Every process knows the whole batch and runs encoders on some of its rows. What it makes of them is
put together before heads and losses: each process computes the very losses that one process would.
Its backward pass gives the whole gradient of the heads, and what its own rows add to that of the
encoders, which is then summed over processes. Everything after is the same everywhere. No objective
knows of this.

Were heads' gradients summed too, those that are zero but for rounding, as that of a bias where
classes are balanced, would differ, and AdamW would make full steps of the difference.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanonet.core.errors import MissingExtraError, RunError
from nanonet.models.learner import Chunk, Kind

# How launchers say how many processes there are; accelerate looks for the same.
COUNTS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
PATIENCE = timedelta(hours=2)  # for the slowest, while it reads or writes
REASONS = ("", "time limit", "interrupted")  # why a run stops; the greatest of all processes' wins


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: its number.
        count: how many there are.
        local_rank: its number on this machine.
        local_count: how many there are on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            RunError: another process has ended.
        """
        self.add_up(torch.zeros(1))

    def add_up(self, numbers: Tensor) -> None:
        """Replace numbers by their sum over all processes, in place (see `wait` for errors)."""
        self._reduce(numbers, dist.ReduceOp.SUM)

    def agree(self, reason: str) -> str:
        """Return why to stop, if any process wants to; the same everywhere (see `wait`)."""
        if self.count == 1:
            return reason
        code = torch.tensor([REASONS.index(reason)])
        self._reduce(code, dist.ReduceOp.MAX)
        return REASONS[int(code)]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over all processes (see `wait` for errors)."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.add_up(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _reduce(self, numbers: Tensor, how: dist.ReduceOp.RedOpType) -> None:
        if self.count == 1:
            return
        # NCCL knows tensors on GPUs only.
        there = numbers.cuda() if dist.get_backend() == "nccl" else numbers
        try:
            dist.all_reduce(there, how)
        except RuntimeError:
            raise RunError(
                "another process of this run has ended; find out why, and continue with --resume"
            ) from None
        if there is not numbers:
            numbers.copy_(there)


ALONE = Processes()


def join_processes(device: str) -> Processes:
    """Return this process among those that a launcher has started; `ALONE` without one.

    Args:
        device: see ``training.device``.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    if count_launched() == 1:
        return ALONE
    try:
        from accelerate import PartialState
    except ModuleNotFoundError as error:
        raise MissingExtraError("training in many processes", "train") from error
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else it warns, and chooses
    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    return Processes(
        state.process_index, state.num_processes, state.local_process_index, local_count
    )


def speaks_of_failure() -> bool:
    """Return whether this process is the one to tell the user what went wrong."""
    if count_launched() == 1:
        return True
    if not dist.is_initialized():
        return int(os.environ.get("RANK", "0")) == 0
    try:  # the first of all that fails; the others fail because of it, or for the same reason
        store = dist.distributed_c10d._get_default_store()
        return bool(store.add("nanonet/failed", 1) == 1)
    except RuntimeError:  # the launcher is gone
        return dist.get_rank() == 0


def leave_together() -> None:
    """Wait for the other processes, if there are any, and close the connections to them."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def count_launched() -> int:
    """Return how many processes a launcher has started."""
    return next((int(os.environ[name]) for name in COUNTS if name in os.environ), 1)


class Share:
    """What this process computes of the rows of a step.

    Rows of a chunk are of like length, and are dealt out one after the other: everyone gets about
    as many tokens.

    Args:
        chunks: all rows.
        counts: how many values of each kind each row has, (R,).
        processes: who takes part.

    Attributes:
        chunks: of this process's rows.
        places: of them in each chunk of all rows; None: this process computes all of them.
    """

    def __init__(
        self, chunks: list[Chunk], counts: Mapping[Kind, Tensor], processes: Processes
    ) -> None:
        self._processes = processes
        self._counts = counts
        self.chunks = chunks
        self.places: list[Tensor] | None = None
        if processes.count == 1 or not chunks:
            return
        device = chunks[0].rows.device
        self._mine = torch.zeros(len(counts["units"]), dtype=torch.bool, device=device)
        self.places, dealt = [], 0
        for chunk in chunks:
            size = len(chunk.rows)
            first = (processes.rank - dealt) % processes.count
            self.places.append(torch.arange(size, device=device)[first :: processes.count])
            self._mine[chunk.rows[self.places[-1]]] = True
            dealt += size
        if not self._mine.any():
            # Who has nothing to do reads one row, and makes nothing of it: its graph must be there.
            self.places[0] = torch.zeros(1, dtype=torch.int64, device=device)
        self.chunks = [
            chunk.take(own) for chunk, own in zip(chunks, self.places, strict=True) if len(own)
        ]

    def gather(self, values: Tensor, kind: Kind) -> Tensor:
        """Return values of all rows, given those of this process's; only the latter learn.

        Both in the order of rows.
        """
        if self.places is None:
            return values
        mine = self._mine.repeat_interleave(self._counts[kind])
        places = mine.nonzero()[:, 0]
        own = values[: len(places)]  # none of the row of one who has nothing to do
        whole = torch.zeros((len(mine), *values.shape[1:]), device=values.device)
        whole[places] = own.detach().float()
        self._processes.add_up(whole)
        return whole.to(values.dtype).index_copy(0, places, own)
