"""Checkpoints: the trained tensors, the optimizers and the position. Atomic; no pickle.

Chance needs no state: batches, views and dropout are functions of the seed and the step. A resumed
run therefore continues to bit-identical results.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from nanonet.core.errors import RunError
from nanonet.core.files import new_folder, write_bytes, write_json
from nanonet.models.cohort import Cohort
from nanonet.training.guard import Guard
from nanonet.training.propagation import SoftLabels

SOFT_LABELS, GUARD = "soft_labels.safetensors", "guard"
KEEP = 2  # checkpoints on disk: should the newest be damaged, the one before it is there


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        step: steps done.
        seconds: training time so far.
        sums: losses added up since the last log line, by name.
        counts: how many steps each of them adds up.
    """

    step: int
    seconds: float
    sums: dict[str, float]
    counts: dict[str, int]

    def after(self, losses: Mapping[str, float], seconds: float) -> "Position":
        """Return the position after a further step."""
        sums, counts = dict(self.sums), dict(self.counts)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value
            counts[name] = counts.get(name, 0) + 1
        return Position(self.step + 1, seconds, sums, counts)


def save_checkpoint(
    folder: Path,
    position: Position,
    cohort: Cohort,
    optimizers: Mapping[str, torch.optim.Optimizer],
    soft_labels: SoftLabels | None = None,
    guard: Guard | None = None,
) -> Path:
    """Write ``folder/step-NNNNNN`` and delete all but the newest checkpoints.

    Raises:
        RunError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    path = folder / f"step-{position.step:06d}"
    states = {
        f"{phase}/{index}/{key}": value
        for phase, optimizer in optimizers.items()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }
    try:
        with new_folder(path) as temporary:
            write_tensors(temporary / "trained.safetensors", cohort.own_tensors())
            write_tensors(temporary / "optimizers.safetensors", states)
            if soft_labels is not None:
                given = {k: v for k, v in vars(soft_labels).items() if v is not None}
                parts = {k: torch.from_numpy(v) for k, v in given.items()}
                write_tensors(temporary / SOFT_LABELS, parts)
            if guard is not None:
                write_tensors(temporary / f"{GUARD}.safetensors", guard.tensors())
                write_json(temporary / f"{GUARD}.json", guard.state())
            write_json(temporary / "position.json", asdict(position))
    except OSError as error:
        raise RunError(
            f"checkpoint {path} could not be written: {error.strerror or error}; free some space"
            " and continue with --resume (earlier checkpoints are intact)"
        ) from None
    for old in list_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]))  # by number: 999999 < 1000000


def load_checkpoint(
    path: Path, cohort: Cohort, optimizers: Mapping[str, torch.optim.Optimizer]
) -> Position:
    """Put a checkpoint's tensors in place and return its position.

    Raises:
        RunError: the checkpoint is damaged or does not fit.
    """
    try:
        cohort.load_own_tensors(read_tensors(path / "trained.safetensors"))
        states = read_tensors(path / "optimizers.safetensors")
        for phase, optimizer in optimizers.items():
            state_dict = optimizer.state_dict()
            state_dict["state"] = _states_of(phase, states)
            optimizer.load_state_dict(state_dict)
        return Position(**json.loads((path / "position.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unusable(path, error) from None


def load_soft_labels(path: Path) -> SoftLabels:
    """Return the propagated labels of a checkpoint that was saved after propagation.

    Raises:
        RunError: they are damaged or gone.
    """
    try:
        parts = read_tensors(path / SOFT_LABELS)
        return SoftLabels(**{name: tensor.numpy() for name, tensor in parts.items()})
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(path, error) from None


def load_guard(path: Path, guard: Guard) -> None:
    """Give a guard what a checkpoint holds of it.

    Raises:
        RunError: it is damaged or gone.
    """
    try:
        state = json.loads((path / f"{GUARD}.json").read_text(encoding="utf-8"))
        guard.restore(read_tensors(path / f"{GUARD}.safetensors"), state)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> RunError:
    return RunError(
        f"checkpoint {path} cannot be used: {error}; delete it to continue from the one before,"
        " if there is one"
    )


def _states_of(phase: str, states: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    out: dict[int, dict[str, Tensor]] = {}
    for name, value in states.items():
        owner, index, key = name.split("/")
        if owner == phase:
            out.setdefault(int(index), {})[key] = value
    return out


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically.

    Raises:
        OSError: the disk is full or not writable.
    """
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_bytes(path, safetensors.torch.save(plain))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from None
