"""Device, precision, attention kernel and threads: chosen by capability, never by timing.

A choice by timing would differ from run to run and break reproducibility. The reasons for the
rules are measurements, see ``docs/experiments.md``.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from nanonet.core.config import TrainingConfig
from nanonet.core.errors import ConfigError
from nanonet.core.machine import usable_cores
from nanonet.models.attention import PACKED, WATCHED
from nanonet.training.processes import ALONE, Processes

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Hardware:
    """What a run computes with.

    Attributes:
        device: a torch device name.
        precision: of the encoder's arithmetic; what is trained is always kept in 32 bits.
        attention: ``eager`` is attention of our own for CPUs (`models.attention`), ``sdpa`` what
            Hugging Face's models call so.
        threads: intra-operation threads on the CPU.
    """

    device: str
    precision: Precision
    attention: Literal["eager", "sdpa"]
    threads: int

    def describe(self) -> str:
        """Return the choice in words."""
        cores = f", {self.threads} threads" if self.device == "cpu" else ""
        return f"{self.device}, {self.precision}{cores}"


def choose_hardware(training: TrainingConfig, processes: Processes = ALONE) -> Hardware:
    """Resolve ``auto`` by what the machine can do.

    Of many processes, each has a GPU of its own, or its part of the cores.

    Raises:
        ConfigError: the device or precision asked for is not there.
    """
    device = training.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if processes.count > 1 and device.startswith("cuda"):
        if device != "cuda":
            raise ConfigError(
                f"training.device is '{device}', which all processes would share: set it to 'cuda'"
            )
        device = f"cuda:{processes.local_rank}"
    kind = _check_device(device)
    capable = _has_bf16(kind)
    if training.precision == "bf16" and not capable:
        raise ConfigError(
            f"training.precision is 'bf16', but {device} has no instructions for it:"
            " use 'fp32' or 'auto'"
        )
    precision: Precision = (
        ("bf16" if capable else "fp32") if training.precision == "auto" else training.precision
    )
    # On CPUs many chunks at once, and fused only where that is faster, see `models.attention`.
    attention: Literal["eager", "sdpa"] = "eager" if kind == "cpu" else "sdpa"
    threads = training.threads or max(1, usable_cores() // processes.local_count)
    return Hardware(device, precision, attention, threads)


@contextmanager
def own_chance_and_threads(threads: int) -> Iterator[None]:
    """Use ``threads`` threads, and leave torch's thread count and random state as they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(before)


def attention_of(hardware: Hardware, watched: bool) -> str:
    """Return the name of the attention to load a backbone with; ``watched``: its maps are read."""
    if watched:
        return WATCHED
    return PACKED if hardware.attention == "eager" else hardware.attention


def _check_device(device: str) -> str:
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"unknown device '{device}' (there are: auto, cpu, cuda, cuda:N, mps)"
        ) from None
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    kind = asked.type
    missing = kind == "cuda" and (asked.index or 0) >= torch.cuda.device_count()
    if missing or not available.get(kind, False):
        raise ConfigError(f"device '{device}' is not available here: use --device cpu or auto")
    return kind


def _has_bf16(kind: str) -> bool:
    """Return whether the device multiplies bf16 matrices faster than 32-bit ones."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        # Not public in every torch release that we support; without them we stay with 32 bits.
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
    return False


def shrink_frozen(model: nn.Module) -> None:
    """Hold the frozen matrices in bf16, in place, once.

    Autocast would cast a frozen matrix again at every forward pass (it caches only casts of
    tensors that require grad). Vectors (norms, biases) stay in 32 bits.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.ndim >= 2:
            parameter.data = parameter.data.to(torch.bfloat16)


def release_memory() -> None:
    """Give freed memory back to the system, where the C library would keep it (glibc).

    Chunks of texts differ in size, so that what one has freed seldom fits the next one: over some
    hundred steps glibc came to hold several times what is in use.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library: no such function
        ctypes.CDLL(None).malloc_trim(0)
