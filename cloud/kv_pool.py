"""Keys and values of all sessions: reserved at admission, accounted to the byte, freed once.

A session's keys and values are one slab, allocated for its whole `max_tokens` when it is
admitted, so that a session once admitted can never run out. Attention reads a slab in place:
on a CPU a contiguous slab needs no gather, while a paged cache would copy every session's
history at every step (torch has no paged attention for CPUs). The operating system backs
a slab with memory only as it is written, so the reservation costs address space, not RAM.

Block tables (for sharing prefixes, and for paged kernels on CUDA) fit behind the same lease:
only `cloud.attention.StepEntry` looks into a slab.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from cloud.errors import BadOpenError, CapacityError


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """What one token costs in one layer: K and V of `num_kv_heads` x `head_dim` values."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32

    def num_bytes(self, *, split: int, max_tokens: int) -> int:
        """Bytes of a session that enters at layer `split`: layers [split, num_layers)."""
        layers = self.num_layers - split
        values = 2 * layers * max_tokens * self.num_kv_heads * self.head_dim
        return values * self.dtype.itemsize


class KvLease:
    """One session's slab. `length` tokens are valid; rolling back is a change of `length`.

    A context manager; `close` frees the bytes exactly once, however often it is called.
    """

    __slots__ = ("_pool", "_slab", "length", "max_tokens", "num_bytes", "split")

    def __init__(self, pool: KvPool, slab: Tensor, *, split: int, num_bytes: int) -> None:
        self._pool = pool
        self._slab: Tensor | None = slab  # [layers, 2 * KV heads, max_tokens, head_dim]
        self.split = split
        self.max_tokens = slab.shape[2]
        self.num_bytes = num_bytes
        self.length = 0

    @property
    def slab(self) -> Tensor:
        """Layers [split, L): [layers, 2 * KV heads, max_tokens, head_dim], keys before values."""
        if self._slab is None:
            raise RuntimeError("this KV lease was closed")
        return self._slab

    def rollback(self, length: int) -> None:
        """Forget everything from position `length` on. A no-op when nothing is there."""
        self.length = min(self.length, length)

    def close(self) -> None:
        if self._slab is not None:
            self._slab = None
            self._pool._release(self.num_bytes)

    def __enter__(self) -> KvLease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class KvPool:
    """Hands out leases while they fit into `limit_bytes`. Safe to use from several threads."""

    def __init__(
        self, shape: KvShape, *, limit_bytes: int, device: torch.device | str = "cpu"
    ) -> None:
        self.shape = shape
        self.limit_bytes = limit_bytes
        self._device = torch.device(device)
        self._lock = threading.Lock()
        self._used_bytes = 0
        self._num_leases = 0

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    @property
    def num_leases(self) -> int:
        return self._num_leases

    def lease(self, *, split: int, max_tokens: int) -> KvLease:
        """Reserve `max_tokens` tokens of layers [split, num_layers).

        Raises CapacityError when it does not fit now, BadOpenError when it never will.
        """
        num_bytes = self.shape.num_bytes(split=split, max_tokens=max_tokens)
        if num_bytes > self.limit_bytes:
            raise BadOpenError(
                f"{max_tokens} tokens need {num_bytes} bytes of KV cache; "
                f"this server has {self.limit_bytes} for all sessions together"
            )
        with self._lock:
            free_bytes = self.limit_bytes - self._used_bytes
            if num_bytes > free_bytes:
                raise CapacityError(
                    f"KV cache is full: {num_bytes} bytes needed, {free_bytes} of "
                    f"{self.limit_bytes} free"
                )
            self._used_bytes += num_bytes
            self._num_leases += 1
        try:
            slab = self._allocate(split, max_tokens)
        except BaseException:
            self._release(num_bytes)
            raise
        return KvLease(self, slab, split=split, num_bytes=num_bytes)

    def _allocate(self, split: int, max_tokens: int) -> Tensor:
        shape = self.shape
        return torch.empty(
            (shape.num_layers - split, 2 * shape.num_kv_heads, max_tokens, shape.head_dim),
            dtype=shape.dtype,
            device=self._device,
        )

    def _release(self, num_bytes: int) -> None:
        with self._lock:
            self._used_bytes -= num_bytes
            self._num_leases -= 1
