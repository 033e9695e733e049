"""What the profiler measures but may not import: the server's engine, and the codec.

The room stands below both, so they come in through these protocols; `splitpoint profile device`
passes the real ones (`cloud.engine.profiled_kernels`, `splitpoint.profiled_codec`), tests pass
fakes. Everything returned to be timed is a call without arguments that has finished its work when
it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from hwprofiles.profiles.engines import Engine

Call = Callable[[], object]


class SessionLoad(NamedTuple):
    """What one session brings to a step: new rows, and tokens cached before them."""

    num_rows: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StackShape:
    """Decoder layers of the common pre-norm shape."""

    width: int
    inner: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


class BackStack(Protocol):
    """A loaded engine of a few layers, with sessions of its own."""

    def step(self, sessions: Sequence[SessionLoad]) -> Call:
        """One batch of these sessions, each with one row of logits, leaving caches as they were."""
        ...


class BackKernels(Protocol):
    """The server's kernels on one device.

    `weight_bits`: the precisions that it stores. `kv_bits`: what its caches hold. `runs_int8`:
    8-bit weights stay 8 bits in memory; otherwise they are widened to the compute type.
    """

    engine: Engine
    accelerator: str | None
    num_threads: int
    weight_bits: tuple[int, ...]
    kv_bits: int
    runs_int8: bool

    def versions(self) -> dict[str, str]:
        """Versions of the libraries whose kernels these are."""
        ...

    def memory_bytes(self) -> tuple[int, int] | None:
        """Total and free bytes of the accelerator's own memory; None where it is the host's."""
        ...

    def base_code(self) -> str:
        """Python that loads what a server process loads before any model."""
        ...

    def copy(self, num_bytes: int) -> Call:
        """Copy so many bytes once."""
        ...

    def matrices(
        self, *, width: int, inner: int, num_pairs: int, weight_bits: int
    ) -> Callable[[int], Call]:
        """`num_pairs` times [rows, width] -> [rows, inner] -> [rows, width], by number of rows."""
        ...

    def stack(self, shape: StackShape, *, num_layers: int, weight_bits: int) -> BackStack:
        """The engine over `num_layers` layers with random weights, a norm and a head."""
        ...

    def sample(self, vocab_size: int) -> Call:
        """Draw one token from logits over so many."""
        ...


class DrawingKernel(Protocol):
    """What a device does for a token of an answer beside its layers, where it holds them all."""

    def __call__(self, vocab_size: int, /) -> Call:
        """A call that draws one token from logits over so many."""
        ...


class CodecKernels(Protocol):
    """The codec's coders over made-up rows. `kinds`: names of the kinds of codec to measure.

    runs_in: "compiled" or "numpy", what the coders run in on this machine.
    """

    kinds: tuple[str, ...]
    runs_in: str

    def coder(self, kind: str, *, hidden_size: int, num_rows: int) -> tuple[Call, Call]:
        """Two calls: one encodes a frame of `num_rows` rows, one decodes it."""
        ...
