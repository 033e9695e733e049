"""Whether products of 16-bit numbers are computed in 16 bits here, asked of ONNX Runtime itself.

The processor must have the instructions: without them ONNX Runtime's kernel works, but in slow
steps. And not every ONNX Runtime that could does it. A product that was widened
shows: it has digits that 16 bits cannot hold, or it is the exact sum rounded once. One that was
computed in 16 bits has rounded its partial sums too. With 512 numbers to add, that leaves hardly
any of the sums as rounding once would. The test is ours.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache

import numpy as np

from hwprofiles.errors import ProviderError, UnknownKernelError
from hwprofiles.profiler.kernel_runs import KernelSettings, run_half_product
from hwprofiles.providers.table import CPU, ExecutionProvider

HWCAP, HWCAP_ASIMDHP = 16, 1 << 10  # of Linux on 64-bit Arm: vectors of 16-bit floats
DEPTH, OUTPUTS = 512, 64
LARGEST_SHARE = 0.5  # of the sums that may be as rounding once would leave them


def has_half_arithmetic() -> bool:
    """Whether this processor is known to compute with vectors of 16-bit floats that ONNX Runtime's
    CPU kernels use: 64-bit Arm from version 8.2 on."""
    if platform.machine() not in ("aarch64", "arm64"):
        return False
    if sys.platform == "darwin":
        return True  # all processors of Apple's own
    if not sys.platform.startswith("linux"):
        return False
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):
        return False
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, (ctypes.c_ulong,)
    return bool(getauxval(HWCAP) & HWCAP_ASIMDHP)


@cache
def computes_halves(provider: ExecutionProvider = CPU) -> bool:
    """Whether this machine's ONNX Runtime keeps 16-bit weights and products in 16 bits.

    Only the CPU's is asked; of other providers the table says it.
    """
    if provider.name != CPU.name:
        return provider.runs_halves
    if not has_half_arithmetic():
        return False
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, DEPTH)).astype(np.float16)
    matrix = rng.standard_normal((DEPTH, OUTPUTS)).astype(np.float16)
    try:
        found = run_half_product(rows, matrix, KernelSettings(1, provider))
    except (ProviderError, UnknownKernelError):
        return False
    exact = rows.astype(np.float64) @ matrix.astype(np.float64)
    fits = np.array_equal(found, found.astype(np.float16))
    return bool(fits and np.mean(found == exact.astype(np.float16)) < LARGEST_SHARE)
