"""What the operating system says about this machine: processor, memory limits, storage rate."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import psutil

from hwprofiles.machine_limits import memory_limit_bytes
from hwprofiles.profiler.timing import Timing, measure

# What an edge process imports besides this project; those not installed are left out.
EDGE_LIBRARIES = (
    "numpy", "onnxruntime", "grpc", "google.protobuf", "tokenizers", "jinja2",
    "yaml", "psutil",
)  # fmt: skip
KEEP_FREE = 0.1  # share of total memory left to the system when nothing limits us


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name, as the kernel gives it."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for key in ("model name", "Model"):
        for line in lines:
            if line.split(":")[0].strip() == key:
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_memory_bytes() -> int:
    """What one process of ours may take: the least of available memory less a reserve, the
    cgroup's limit and RLIMIT_AS / RLIMIT_DATA."""
    memory = psutil.virtual_memory()
    limits = [int(min(memory.available, memory.total * (1 - KEEP_FREE)))]
    group = memory_limit_bytes()
    if group is not None:
        limits.append(group)
    for name in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(name)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    return min(limits)


class ProcessBase(NamedTuple):
    """Resident bytes of a process without a model, and how many of them are pages of files."""

    num_bytes: int
    file_bytes: int


class ProcessBaseRun:
    """A child process that loads what a process of ours loads, and says how large it is then.

    Use it in a `with` statement, which ends the child.
    """

    def __init__(self, code: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._found: ProcessBase | None = None

    def __enter__(self) -> ProcessBaseRun:
        return self

    def __exit__(self, *_raised: object) -> None:
        if self._found is None:
            self._child.kill()
            self._child.communicate()

    def result(self) -> ProcessBase:
        """Wait for its end. CalledProcessError where it failed."""
        if self._found is None:
            output, errors = self._child.communicate()
            if status := self._child.returncode:
                raise subprocess.CalledProcessError(status, self._child.args, output, errors)
            resident, of_files = (1024 * int(kib) for kib in output.split()[-2:])
            self._found = ProcessBase(resident, of_files)
        return self._found


def begin_process_base(load: str | None = None, *, provider: str = "cpu") -> ProcessBaseRun:
    """A fresh interpreter that runs `load`, and holds no model.

    By default an edge's libraries, each kind of kernel run once on tiny tensors so that the
    pages of the library's code that they touch are counted, with the kernels of `provider`. A child
    process, because this one has already grown.
    """
    edge = (
        "import importlib.util\n"
        f"for name in {EDGE_LIBRARIES!r}:\n"
        "    if importlib.util.find_spec(name): __import__(name)\n"
        "from hwprofiles.profiler.kernel_runs import touch_kernels\n"
        f"touch_kernels({provider!r})\n"
    )
    code = (edge if load is None else load) + (
        "lines = dict(l.split(':', 1) for l in open('/proc/self/status'))\n"
        "print(*(lines[name].split()[0] for name in ('VmRSS', 'RssFile')))"
    )
    return ProcessBaseRun(code)


def memory_bandwidth(num_bytes: int, budget_s: float) -> tuple[float, Timing]:
    """Bytes per second of a single-threaded copy (read plus written), and its timing."""
    source = np.ones(num_bytes // 8)
    target = np.empty_like(source)
    timing = measure(lambda: np.copyto(target, source), budget_s=budget_s)
    return 2 * source.nbytes / timing.seconds, timing


def storage_read_rate(folder: Path | None, num_bytes: int) -> float | None:
    """Bytes per second of reading a fresh file past the page cache; None where that is impossible,
    as on a read-only file system.

    The file is written, synced and dropped from the page cache (posix_fadvise), then read once.
    A virtual disk may still answer from its host's cache: the figure is what a load would see.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            return _read_rate(file, num_bytes)
    except OSError:
        return None


def _read_rate(file: IO[bytes], num_bytes: int) -> float:
    block = os.urandom(1 << 20)
    for _ in range(num_bytes // len(block)):
        file.write(block)
    file.flush()
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    start = time.perf_counter()
    while file.read(1 << 22):
        pass
    return num_bytes / (time.perf_counter() - start)


def runs_on_battery() -> bool:
    """Whether the machine takes its power from a battery; no where nobody can tell."""
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError):  # not on this system; a container without /sys
        return False
    return battery is not None and not battery.power_plugged


def throttle_events(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """How often the cores have throttled for heat since they were started; 0 where the system
    does not say (virtual machines, most Arm boards)."""
    total = 0
    for path in root.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        try:
            total += int(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return total
