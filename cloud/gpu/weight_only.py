"""A product with 8-bit weights on a GPU: y = x (codes * scale)^T + bias, in one Triton kernel.

    x [T, K] bfloat16, float16 or float32    codes [N, K] int8 or float8_e4m3fn    scale [N] float32

The weights stay 8 bits in memory and are widened in registers ("weight-only"). Both code types fit
x's type exactly, so the kernel rounds nothing but its sums, which are float32, and its result. The
scale and the bias are applied to the sum. Ours; the tiles follow Triton's matmul tutorial.

The tile's rows are the outputs (W x^T), so T changes only the other side of a tile. `tiling` takes
the tile's outputs from N alone, the same K step always, and only the tile's tokens from T. One
kernel serves every T. Large T is not dequantized first, so long prompts get the same sums.

What is promised of a row in a batch: every T adds a row's products in the same order of K steps,
in float32. Within one size of tile (T up to 16, up to 32, above) a row has the same bits whoever
shares the batch. Between sizes the matrix instructions differ at most in how many tokens they take,
but nobody documents how they round inside. `tests/gpu/test_weight_only.py` compares the bits on the
GPU that runs it.

A CUDA graph can capture the call: it allocates only its output and does not wait for the device.
The first call of each tile compiles, so a call of each of `TOKENS_OF_TILE` has to come before.

TRITON_INTERPRET=1, set before this module is imported, runs the kernel on a CPU for tests.
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

try:  # torch brings Triton only where it brings CUDA
    import triton
    import triton.language as tl
except ImportError:
    triton = None

CODE_TYPES: Final = (torch.int8, torch.float8_e4m3fn)
ROW_TYPES: Final = (torch.bfloat16, torch.float16, torch.float32)
TOKENS_OF_TILE: Final = (16, 32, 64)

_BLOCK_K: Final = 128  # one for all, so that every T adds in the same order
_OUTPUTS_OF_TILE: Final = (128, 64, 32)
_MAX_FLOAT32_OUTPUTS: Final = 64  # else a tile of float32 does not fit into shared memory
_WANTED_PROGRAMS: Final = 128  # about the number of multiprocessors of a large GPU
_MAX_STAGES: Final = 8
_LOADED_BYTES: Final = 64 << 10  # of a program's loads in flight; GPUs have 99 KiB and more
_LEAST_CAPABILITY: Final = (8, 0)  # bfloat16
_LEAST_FP8_CAPABILITY: Final = (8, 9)


class Tiling(NamedTuple):
    """How a product is cut: a tile's tokens, outputs and K step; its warps; its loads in flight."""

    block_t: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def tiling(num_rows: int, num_outputs: int, row_bytes: int = 2) -> Tiling:
    """The tiling of a product of T rows and N outputs; a pure table.

    row_bytes: of one value of x. Only `block_t` and `num_stages`, which change no sum's order,
    depend on T.
    """
    block_t = next((size for size in TOKENS_OF_TILE if num_rows <= size), TOKENS_OF_TILE[-1])
    block_n = _OUTPUTS_OF_TILE[-1]
    for size in _OUTPUTS_OF_TILE:
        fits = row_bytes < 4 or size <= _MAX_FLOAT32_OUTPUTS
        if fits and -(-num_outputs // size) >= _WANTED_PROGRAMS:
            block_n = size
            break
    stage_bytes = _BLOCK_K * (block_n + block_t * row_bytes)
    num_stages = max(2, min(_MAX_STAGES, 1 + _LOADED_BYTES // stage_bytes))
    return Tiling(block_t, block_n, _BLOCK_K, 8 if block_n == 128 else 4, num_stages)


def why_not(device: torch.device | str, codes: torch.dtype = torch.int8) -> str | None:
    """Why the kernel cannot run for these codes on this device, in a few words; None: it can."""
    device = torch.device(device)
    if triton is None:
        return "Triton is not installed"
    if is_interpreted():
        return None
    if device.type != "cuda":
        return f"there is no Triton on {device.type}"
    least = _LEAST_FP8_CAPABILITY if codes == torch.float8_e4m3fn else _LEAST_CAPABILITY
    found = _capability(device)
    if found >= least:
        return None
    return "the GPU has compute capability {}.{}, not {}.{} or more".format(*found, *least)


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernel here, on CPU tensors."""
    return triton is not None and not isinstance(product_kernel, triton.JITFunction)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def weight_only_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [T, K] in one of ROW_TYPES -> [T, N] in the same type. See the module's docstring.

    codes: [N, K] in one of CODE_TYPES, contiguous; scale, bias: [N] float32, contiguous. Raises
    TypeError for other types, ValueError for shapes that do not fit.
    """
    if x.dtype not in ROW_TYPES or codes.dtype not in CODE_TYPES:
        raise TypeError(f"no product of {x.dtype} rows with {codes.dtype} weights")
    num_rows, width = x.shape
    num_outputs = codes.shape[0]
    if codes.shape[1] != width or scale.shape != (num_outputs,):
        raise ValueError(
            f"rows of {width} values, codes {tuple(codes.shape)}, scales {tuple(scale.shape)}"
        )
    out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    plan = tiling(num_rows, num_outputs, x.element_size())
    grid = (-(-num_rows // plan.block_t), -(-num_outputs // plan.block_n))
    _launcher(grid)(
        x.contiguous(),
        codes,
        scale,
        scale if bias is None else bias,
        out,
        num_rows,
        num_outputs,
        width,
        HAS_BIAS=bias is not None,
        EVEN_K=width % plan.block_k == 0,
        IN_FLOAT32=is_interpreted(),  # the interpreter multiplies no bfloat16
        BLOCK_T=plan.block_t,
        BLOCK_N=plan.block_n,
        BLOCK_K=plan.block_k,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
        enable_fp_fusion=True,  # the default, which Triton warns that it will change
    )
    return out


def _launcher(grid: tuple[int, int]) -> Any:
    if triton is None:
        raise RuntimeError("8-bit weights on a GPU need Triton, which is not installed")
    return product_kernel[grid]


if triton is not None:

    @triton.jit(do_not_specialize=["num_rows"])  # one binary for every T of a tile
    def product_kernel(
        x_ptr,
        codes_ptr,
        scale_ptr,
        bias_ptr,
        out_ptr,
        num_rows,
        N,
        K,
        HAS_BIAS: tl.constexpr,
        EVEN_K: tl.constexpr,
        IN_FLOAT32: tl.constexpr,
        BLOCK_T: tl.constexpr,
        BLOCK_N: tl.constexpr,
        BLOCK_K: tl.constexpr,
    ):
        """One tile [BLOCK_N, BLOCK_T] of y^T. Grid: tiles of T, then of N."""
        rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
        outputs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        steps = tl.arange(0, BLOCK_K)
        # Rows beyond the end read row 0 and are not stored. 64 bits: a head may have 2^31 codes.
        rows_read = tl.where(rows < num_rows, rows, 0).to(tl.int64)
        outputs_read = tl.where(outputs < N, outputs, 0).to(tl.int64)
        x_at = x_ptr + rows_read[None, :] * K + steps[:, None]
        codes_at = codes_ptr + outputs_read[:, None] * K + steps[None, :]
        sums = tl.full((BLOCK_N, BLOCK_T), 0.0, dtype=tl.float32)
        for begin in range(0, K, BLOCK_K):
            if EVEN_K:
                codes = tl.load(codes_at)
                x = tl.load(x_at)
            else:
                codes = tl.load(codes_at, mask=(begin + steps < K)[None, :], other=0.0)
                x = tl.load(x_at, mask=(begin + steps < K)[:, None], other=0.0)
            if IN_FLOAT32:
                x = x.to(tl.float32)
            wide = codes.to(tl.float32).to(x.dtype)  # exact, both times
            sums = tl.dot(wide, x, sums, input_precision="ieee")
            codes_at += BLOCK_K
            x_at += BLOCK_K
        scale = tl.load(scale_ptr + outputs_read)
        sums = sums * scale[:, None]
        if HAS_BIAS:
            sums += tl.load(bias_ptr + outputs_read)[:, None]
        out_at = out_ptr + rows_read[None, :] * N + outputs_read[:, None]
        fits = (rows < num_rows)[None, :] & (outputs < N)[:, None]
        tl.store(out_at, sums.to(out_ptr.dtype.element_ty), mask=fits)
