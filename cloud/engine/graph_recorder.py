"""Recording a decode step as a CUDA graph, and the memory that a step is copied through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

ResultT = TypeVar("ResultT")
# Records what a function launches: what replays it, and what it returned, filled by each replay.
Recorder: TypeAlias = Callable[[Callable[[], tuple[Tensor, Tensor]]], "Recorded"]


class Recorded(NamedTuple):
    """replay: run it again. logits: float32 [B, V]; ids: int64 [B], -1 where a row overflowed."""

    replay: Callable[[], object]
    logits: Tensor
    ids: Tensor


class StepMemory:
    """What a step of B rows is copied through: pinned memory here, and its place on the device.

    rows: float32 [B, D]. meta: int32 [3, B], slots, positions and splits. ids: int64 [B].
    """

    def __init__(self, num_rows: int, width: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.rows_host = torch.zeros((num_rows, width), pin_memory=pinned)
        self.meta_host = torch.zeros((3, num_rows), dtype=torch.int32, pin_memory=pinned)
        self.ids_host = torch.zeros(num_rows, dtype=torch.int64, pin_memory=pinned)
        self.rows = torch.zeros((num_rows, width), device=device)
        self.meta = torch.zeros((3, num_rows), dtype=torch.int32, device=device)
        self.meta_numpy = self.meta_host.numpy()
        self.meta_numpy[0] = -1
        self.upload()

    def upload(self) -> None:
        """Copy rows and meta to the device."""
        self.rows.copy_(self.rows_host, non_blocking=True)
        self.meta.copy_(self.meta_host, non_blocking=True)


class CudaRecorder:
    """Records into CUDA graphs that share one pool of memory: they never run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, run: Callable[[], tuple[Tensor, Tensor]]) -> Recorded:
        """See Recorder. Raises RuntimeError for what cannot be recorded."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):  # kernels are compiled and loaded before the recording
            for _ in range(2):
                run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            # The pool lives as long as any graph does: this one stays.
            self._keeper = self._captured(lambda: torch.zeros(1, device=self._device))[0]
        graph, (logits, ids) = self._captured(run)
        return Recorded(graph.replay, logits, ids)

    def _captured(self, run: Callable[[], ResultT]) -> tuple[torch.cuda.CUDAGraph, ResultT]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()
        return graph, result
