"""How much memory this process has held at most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory_bytes(status: Path = STATUS) -> int:
    """High-water mark of this process's resident memory in bytes, from the kernel.

    Linux: VmHWM. `ru_maxrss` would do elsewhere, but on Linux it outlives exec: a small program
    that a large one starts begins with the large one's mark.
    """
    try:
        lines = status.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB on other systems
