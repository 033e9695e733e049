"""Where the check of the GPU's engine runs: on a CUDA device, or dry on a CPU.

A dry run takes every Python path of the check with shapes as small as they can be. Triton's
interpreter runs the kernels, in float32, and nothing is timed that means anything.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cloud.engine.graph_recorder import Recorded, Recorder


class CudaMachine:
    """The CUDA device that torch names first."""

    device: ClassVar = torch.device("cuda")
    half: ClassVar[torch.dtype] = torch.bfloat16  # what the server computes in
    is_dry: ClassVar = False

    @property
    def recorder(self) -> Recorder | None:
        """What records a step; None: CUDA graphs."""
        return None

    @property
    def name(self) -> str:
        """The device's name."""
        return torch.cuda.get_device_name()

    @property
    def has_fp8(self) -> bool:
        """Whether it has float8 e4m3: compute capability 8.9 and higher."""
        return torch.cuda.get_device_capability() >= (8, 9)

    def finish(self) -> None:
        """Wait for all work."""
        torch.cuda.synchronize()

    def free_bytes(self) -> int:
        """Memory that nobody uses, after giving back what was only kept for later."""
        gc.collect()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info()[0])

    def timed(self, call: Callable[[], object], repeats: int) -> float:
        """Median seconds on the device, after three calls that do not count."""
        for _ in range(3):
            call()
        pairs = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return float(np.median([begin.elapsed_time(end) for begin, end in pairs])) / 1e3


def played_again(run: Callable[[], tuple[Tensor, Tensor]]) -> Recorded:
    """Each replay runs the step again into the same memory, as a graph does."""
    logits, ids = run()

    @torch.inference_mode()
    def replay() -> None:
        new_logits, new_ids = run()
        logits.copy_(new_logits)
        ids.copy_(new_ids)

    return Recorded(replay, logits, ids)


class DryMachine(CudaMachine):
    """A CPU in its place. TRITON_INTERPRET=1 has to be set before Triton is imported."""

    device: ClassVar = torch.device("cpu")
    half: ClassVar[torch.dtype] = torch.float32  # the interpreter multiplies no bfloat16
    is_dry: ClassVar = True
    name: ClassVar[str] = "a dry run on a CPU"
    has_fp8: ClassVar[bool] = True

    @property
    def recorder(self) -> Recorder | None:
        """See CudaMachine."""
        return played_again

    def finish(self) -> None:
        """See CudaMachine."""

    def free_bytes(self) -> int:
        """See CudaMachine. As much as the small shapes need."""
        return 1 << 28

    def timed(self, call: Callable[[], object], repeats: int) -> float:
        """See CudaMachine. One call: the time means nothing."""
        begin_s = time.perf_counter()
        call()
        return time.perf_counter() - begin_s
