"""The compiled kernel (`kernel.c`) through ctypes: 8-bit linear layers and whole decoder layers.

The kernel is optional. Where it was not built, or where the processor has neither AVX2 nor SDOT,
`load` gives None and the torch code runs; its numbers differ by float32 noise. Everything here is
for a CPU, float32 activations and int8 weights. `cloud/kernel/README.md` describes the C side.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.kernel.loader import CFunction, KernelSpec, load_kernel
from codec.kernel.remedy import remedy

logger = logging.getLogger(__name__)

# As in kernel.c. Any thread may take part in any step, so each has scratch of its own: another
# engine of this process may add threads after a step was laid out and before it runs.
MAX_THREADS: Final = 64
MAX_GROUP: Final = 4  # query heads that attend together, each with scores of its own
# |digit| <= 127 and code + 128 <= 255: below this width no int32 sum overflows.
MAX_EXACT_WIDTH: Final = (1 << 31) // (127 * 255)
_BLOCK_OUTPUTS: Final = 64
_VECTOR_OUTPUTS: Final = 16
_QUAD: Final = 4
_PANEL_ROWS: Final = 96
_MAX_CHUNKS: Final = (1 << 20) - 1  # COUNT_MASK of thread_pool.h
_LANES: Final = 16  # channels of a head come in whole vectors
_MAX_HEAD_DIM: Final = 128
_LAYOUT_VERSION: Final = 4  # of kernel.c


class CLinear(ctypes.Structure):
    """`Linear` of kernel.c."""

    _fields_ = [
        ("packed", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
    ]


class CLayer(ctypes.Structure):
    """`Layer` of kernel.c."""

    _fields_ = [
        ("qkv", CLinear),
        ("out", CLinear),
        ("gate_up", CLinear),
        ("down", CLinear),
        ("input_norm", ctypes.c_void_p),
        ("post_norm", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    ]


class CStep(ctypes.Structure):
    """`Step` of kernel.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_rows", "width", "inner")),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "head_dim", "rotary_dim")),
        *((name, ctypes.c_void_p) for name in ("arena", "place", "step", "first_piece", "pieces")),
        *((name, ctypes.c_void_p) for name in ("cos", "sin", "hidden", "wide", "mixed", "digits")),
        *((name, ctypes.c_void_p) for name in ("row_scale", "row_sum", "scores")),
        ("history", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("squeezed", "squeezes", "num_read", "picked")),
        ("cluster_scores", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("most_picked", "most_cluster_scores")),
        *((name, ctypes.c_void_p) for name in ("kept", "queries")),
        *((name, ctypes.c_int64) for name in ("num_kept", "kept_layer")),
    ]


class CSegment(ctypes.Structure):
    """`Segment` of kernel.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("labels", "centroids", "counts", "values")]


class CSqueeze(ctypes.Structure):
    """`Squeeze` of kernel.c."""

    _fields_ = [
        ("segments", ctypes.c_void_p),
        ("num_segments", ctypes.c_int64),
        ("first_layer", ctypes.c_int64),
        ("threshold", ctypes.c_float),
    ]


class CPiece(ctypes.Structure):
    """`Piece` of kernel.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("row", "stride", "count")]


class PackedLinear:
    """int8 weights in the kernel's order. codes: int8 [N, K]; scale, bias: float32 [N].

    Raises ValueError for other types and shapes, and for a K beyond MAX_EXACT_WIDTH.
    """

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        _need(codes, "codes", torch.int8, (None, None))
        self.num_outputs, self.num_inputs = codes.shape
        if codes.numel() == 0 or self.num_inputs > MAX_EXACT_WIDTH:
            raise ValueError(f"the kernel takes no weights of shape {list(codes.shape)}")
        _need(scale, "scale", torch.float32, (self.num_outputs,))
        if bias is not None:
            _need(bias, "bias", torch.float32, (self.num_outputs,))
        extra = -self.num_outputs % _BLOCK_OUTPUTS
        padded = F.pad(codes, (0, -self.num_inputs % _QUAD, 0, extra))
        blocks = padded.view(-1, _VECTOR_OUTPUTS, padded.shape[1] // _QUAD, _QUAD)
        self._packed = (blocks.permute(0, 2, 1, 3).contiguous() ^ -128).view(torch.uint8)
        self._scale = F.pad(scale, (0, extra)).contiguous()
        self._bias = None if bias is None else F.pad(bias, (0, extra)).contiguous()
        self.struct = CLinear(
            packed=self._packed.data_ptr(),
            scale=self._scale.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            n=self.num_outputs,
            k=self.num_inputs,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed weights, without scales and bias."""
        return self._packed.numel()


class NativeKernel:
    """The loaded library. One call at a time runs, on `num_threads` threads of its own.

    kind: the instruction set, as `sp_available` gives it.
    """

    def __init__(self, library: ctypes.CDLL, kind: int) -> None:
        self._library = library
        self._kind = ctypes.c_int32(kind)
        self.name = ("none", "AVX2", "AVX-512 VNNI", "SDOT")[kind]
        self.num_threads = 1

    def set_threads(self, count: int) -> None:
        """Steps run on `count` threads from now on (fewer where the system gives no more)."""
        self.num_threads = int(self._library.sp_set_threads(ctypes.c_int32(count)))

    def linear(self, x: Tensor, weights: PackedLinear) -> Tensor:
        """float32 [T, K] -> [T, N]. A row that is not finite gives NaN, and only that row.

        Raises ValueError for another type or shape.
        """
        _need(x, "x", torch.float32, (None, weights.num_inputs))
        _need_chunks(x.shape[0], weights.num_outputs)
        self.set_threads(torch.get_num_threads())
        x = x.contiguous()
        num_rows, width = x.shape
        out = torch.empty((num_rows, weights.num_outputs))
        digits = torch.empty((2 * num_rows, width + -width % _QUAD), dtype=torch.int8)
        row_scale = torch.empty(num_rows)
        row_sum = torch.empty(2 * num_rows, dtype=torch.int32)
        step = CStep(
            num_rows=num_rows,
            digits=digits.data_ptr(),
            row_scale=row_scale.data_ptr(),
            row_sum=row_sum.data_ptr(),
        )
        self._library.sp_linear(
            ctypes.byref(weights.struct),
            None,
            ctypes.c_float(0.0),
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.byref(step),
            self._kind,
        )
        return out

    def layers(
        self, layers: ctypes.Array[CLayer], first: int, at: Sequence[int], step: CStep
    ) -> None:
        """Run the layers at indices `at` (consecutive) of `layers`; the first is layer `first`.

        A row that is not finite stays so, and no other session's row changes. `layers` comes from
        `layer_array`. Raises ValueError where `layers` has no such indices or `step` another shape.
        """
        _need_layers(layers, at, step)
        begin = ctypes.byref(layers, at[0] * ctypes.sizeof(CLayer))
        self._library.sp_layers(
            begin, ctypes.c_int64(first), ctypes.c_int64(len(at)), ctypes.byref(step), self._kind
        )

    def attend(self, step: CStep, layer: int, scale: float) -> None:
        """Attention alone, of the queries in `step.wide` into `step.mixed`.

        wide: [T, H + 2 KV, d], the H queries first (the rest is not read); mixed: [T, H, d]. A
        row with a query, key or value that is not finite gets a result that is not either. Raises
        ValueError for heads that the kernel has no loops for.
        """
        _need_heads(step)
        self._library.sp_attend(
            ctypes.byref(step), ctypes.c_int64(layer), ctypes.c_float(scale), self._kind
        )


def layer_array(layers: Sequence[CLayer]) -> ctypes.Array[CLayer]:
    """The layers as `NativeKernel.layers` takes them. Raises ValueError for different shapes."""
    if len({_shapes_of(layer) for layer in layers}) != 1:
        raise ValueError("the kernel takes layers of one shape")
    return (CLayer * len(layers))(*layers)


def _shapes_of(layer: CLayer) -> tuple[int, ...]:
    """Outputs and inputs of the layer's four products."""
    linears = (layer.qkv, layer.out, layer.gate_up, layer.down)
    return tuple(size for linear in linears for size in (linear.n, linear.k))


def _need_layers(layers: ctypes.Array[CLayer], at: Sequence[int], step: CStep) -> None:
    _need_heads(step)
    width, inner, mixed = step.width, step.inner, step.heads * step.head_dim
    qkv = mixed + 2 * step.kv_heads * step.head_dim
    if not 0 <= at[0] <= at[-1] < len(layers):
        raise ValueError(f"layers {at[0]} to {at[-1]} of {len(layers)}")
    expected = (qkv, width, width, mixed, 2 * inner, width, width, inner)
    if _shapes_of(layers[at[0]]) != expected:
        raise ValueError(f"layers of shape {_shapes_of(layers[at[0]])}, expected {expected}")
    if step.rotary_dim % 2 or not 0 <= step.rotary_dim <= step.head_dim:
        raise ValueError(f"{step.rotary_dim} of {step.head_dim} channels to rotate")
    _need_chunks(step.num_rows, max(qkv, width, 2 * inner))


def _need_heads(step: CStep) -> None:
    heads, kv_heads, dim = step.heads, step.kv_heads, step.head_dim
    if (
        kv_heads < 1
        or heads < 1
        or heads % kv_heads
        or dim % _LANES
        or not 0 < dim <= _MAX_HEAD_DIM
    ):
        raise ValueError(f"the kernel has no loops for {heads} over {kv_heads} heads of {dim}")


def _need_chunks(num_rows: int, num_outputs: int) -> None:
    chunks = -(-num_rows // _PANEL_ROWS) * -(-num_outputs // _BLOCK_OUTPUTS)
    if chunks > _MAX_CHUNKS // 2:  # a block may be halved
        raise ValueError(f"{num_rows} rows of {num_outputs} outputs are too many for one step")


def _need(tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    """ValueError unless the tensor is on the CPU, of this type and of this shape (None: any)."""
    sizes = tensor.shape
    fits = len(sizes) == len(shape) and all(
        expected is None or size == expected for size, expected in zip(sizes, shape, strict=True)
    )
    if tensor.dtype != dtype or not fits or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is {tensor.dtype} {list(sizes)} on {tensor.device}; "
            f"the kernel takes {dtype} {list(shape)} on the CPU"
        )


_AT = ctypes.c_void_p
_KERNEL = KernelSpec(
    module="cloud.kernel._kernel",
    abi_function="sp_layout",
    abi=(
        _LAYOUT_VERSION,
        *map(ctypes.sizeof, (CLinear, CLayer, CPiece, CStep, CSegment, CSqueeze)),
    ),
    without="8-bit layers run in torch",
    functions=(
        CFunction(name="sp_available", result=ctypes.c_int32, arguments=()),
        CFunction(name="sp_set_threads", result=ctypes.c_int32, arguments=(ctypes.c_int32,)),
        CFunction(
            name="sp_layers",
            result=None,
            arguments=(_AT, ctypes.c_int64, ctypes.c_int64, _AT, ctypes.c_int32),
        ),
        CFunction(
            name="sp_linear",
            result=None,
            arguments=(_AT, _AT, ctypes.c_float, _AT, _AT, _AT, ctypes.c_int32),
        ),
        CFunction(
            name="sp_attend",
            result=None,
            arguments=(_AT, ctypes.c_int64, ctypes.c_float, ctypes.c_int32),
        ),
    ),
)


@functools.cache
def load() -> NativeKernel | None:
    """The kernel, None (logged once) where it is not there."""
    library = load_kernel(_KERNEL)
    if library is None:
        return None
    kind = int(library.sp_available())
    if kind == 0:
        logger.info("this processor has neither AVX2 nor SDOT: 8-bit layers run in torch")
        return None
    return NativeKernel(library, kind)


def why_torch_runs() -> str:
    """Why `load` gives None, and what helps where something does."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return "the compiled kernel is for Linux on x86-64 and 64-bit Arm"
    if load_kernel(_KERNEL) is None:
        return f"the compiled kernel is not there; to fix: {remedy()}"
    needs = "AVX2" if platform.machine() == "x86_64" else "SDOT (Armv8.2)"
    return f"this processor has no {needs}"
