"""Kernels that begin before the one before them has ended (programmatic dependent launch).

A decode step is a chain of short kernels. On GPUs of compute capability 9 and higher a kernel may
be placed while its predecessor runs: it reads what does not depend on the predecessor, such as its
weights, and then waits for the predecessor's results (CUDA C++ programming guide, "Programmatic
Dependent Launch and Synchronization"). Every kernel here waits before it reads or writes anything
that another one wrote.

It is off unless the environment has SPLITPOINT_GPU_OVERLAP=1: whole steps were never compared with
it on a GPU. `benchmarks/gpu_check.sh` compares them.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

from cloud.gpu.switches import OVERLAP_VARIABLE

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # an older Triton: then no kernel is compiled with OVERLAP
    gdc_launch_dependents = gdc_wait = None

__all__ = ["gdc_launch_dependents", "gdc_wait", "overlap_options"]


def overlap_options(device: torch.device) -> dict[str, Any]:
    """What a launch on `device` is given: OVERLAP for the kernel, and the launch's attribute."""
    return {"OVERLAP": True, "launch_pdl": True} if _overlaps(device) else {"OVERLAP": False}


@functools.cache
def _overlaps(device: torch.device) -> bool:
    if os.environ.get(OVERLAP_VARIABLE) != "1":
        return False
    if gdc_wait is None or device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)
