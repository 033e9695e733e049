"""What the edge's benchmarks share: the machine's facts, summaries, one process's figures."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import psutil


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "load_average": os.getloadavg()[0],
        "onnxruntime": version("onnxruntime"),
        "grpcio": version("grpcio"),
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def process_figures(pid: int) -> dict[str, int]:
    """Resident bytes, open files and sockets, and threads of a process."""
    process = psutil.Process(pid)
    return {
        "rss_bytes": process.memory_info().rss,
        "open_files": process.num_fds(),
        "sockets": len(process.net_connections()),
        "threads": process.num_threads(),
    }
