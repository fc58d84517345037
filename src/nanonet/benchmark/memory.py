"""Resident memory of this process, in bytes.

On Linux from ``/proc/self/status``: ``ru_maxrss`` of a new process begins at what its parent held.
"""

import sys
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


def _status(field: str) -> int:
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0
