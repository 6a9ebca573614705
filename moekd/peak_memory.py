"""How much memory a part of a run needs at most, also in a process that has done other work before."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
#: What the kernel takes as "start the peak of the resident size anew" (Linux, Documentation/filesystems/proc.rst).
_RESET = "5"


class PeakMemory:
    """The peak since this object was made: of a GPU what is allocated there, else the resident size of the process.

    The resident size holds libraries and data too, and pages of memory-mapped files that were read. Where the kernel
    does not let the peak start anew (other systems, some sandboxes), the peak of the whole process is given, and said
    so: it may come from work before.

    Args:
        device: where the models are.

    Attributes:
        of: `part`: since this object was made; `process`: since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.of = "part"
        else:
            self.of = "part" if _start_anew() else "process"

    def record(self) -> dict[str, Any]:
        """Return `{"peak_memory_mb": MiB, "peak_memory_of": "part" or "process"}`."""
        return {"peak_memory_mb": self.megabytes(), "peak_memory_of": self.of}

    def megabytes(self) -> float:
        """Return the peak in MiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if self.of == "part" and (resident := _peak_of_status()) is not None:
            return resident / 1024
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 1024)


def _start_anew() -> bool:
    """Give freed memory back and let the kernel forget the peak; False where it can't."""
    if not sys.platform.startswith("linux") or _peak_of_status() is None:
        return False
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text(_RESET)
    except OSError:
        return False
    return True


def _peak_of_status() -> int | None:
    """Return the peak of the resident size, in KiB."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
