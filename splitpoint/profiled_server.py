"""The server's kernels for the profiler, and the memory of a process that has loaded them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud.engine.profiled_kernels import TorchKernels
    from hwprofiles.profiler.system_facts import ProcessBase


def loaded_kernels(device: str) -> tuple[TorchKernels, ProcessBase]:
    """Kernels of `device` ("auto", "cpu", "cuda"), and a server process's memory without a model.

    Loading torch takes seconds. The process that is measured loads it beside this one.
    """
    from cloud.engine.base_code import base_code
    from hwprofiles.profiler.system_facts import begin_process_base

    with begin_process_base(base_code(device)) as child:
        from cloud.engine.profiled_kernels import TorchKernels

        kernels = TorchKernels(device)
        return kernels, child.result()
