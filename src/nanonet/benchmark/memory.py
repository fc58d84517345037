"""Resident memory of this process, in bytes, and what training takes of it.

On Linux from ``/proc/self/status``: ``ru_maxrss`` of a new process begins at what its parent held.
"""

import sys
import time
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Return what is resident now; the peak so far where the system does not say."""
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """Return the most that was resident since the process began or `reset_peak`; 0: unknown."""
    if found := _status("VmHWM"):
        return found
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> None:
    """Let the peak begin anew; elsewhere than on Linux this does nothing."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class Probe:
    """Measures time and resident memory from just before the first step to after the last."""

    def __init__(self) -> None:
        self._loaded = 0
        self._loading = 0
        self._training = 0
        self._began = 0.0
        self.seconds = 0.0

    def start(self) -> None:
        """All is loaded; only the first call counts."""
        if not self._loaded:
            self._loading = peak_bytes()
            reset_peak()
            self._loaded = resident_bytes()
            self._began = time.perf_counter()

    def stop(self) -> None:
        """Training has ended; the last call counts."""
        self._training = peak_bytes()
        self.seconds = time.perf_counter() - self._began

    def measured(self) -> dict[str, float]:
        """Return memory in MB (10^6 bytes): the process's peak, scoring not included."""
        figures = {
            "peak_mb": max(self._loading, self._training),
            "loaded_mb": self._loaded,
            "above_loaded_mb": max(0, self._training - self._loaded),
        }
        return {name: round(value / 1e6, 1) for name, value in figures.items()}


def _status(field: str) -> int:
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0
