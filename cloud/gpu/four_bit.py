"""A product with 4-bit weights on a GPU: y = x W^T + bias, in one Triton kernel.

    x [T, K] bfloat16, float16 or float32    codes [N, 64 B] uint8    scale, low [N, 2 B] bfloat16

with B = K / 128, rounded up. A weight is scale * code + low, with one scale and low for GROUP (64)
weights of a row: so every group of a GPTQ or AWQ checkpoint whose groups have 64 or 128 weights
fits. Byte j of a block of 128 weights has the codes of weight j, in its low half, and of weight
j + 64: so both halves are whole groups, and nothing is shuffled. Weights beyond K count nothing.

The weights stay 4 bits in memory. A code is widened to x's type in registers, exactly, and

    y = sum over groups of (scale * sum of (code * x) + low * sum of x)

in float32, in the order of the groups. What is promised of a row in a batch is what
`cloud.gpu.weight_only` promises; tiles are the same. Ours. TRITON_INTERPRET=1, set before this
module is imported, runs the kernel on a CPU for tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cloud.gpu.four_bit_layout import BLOCK, GROUP, PARAMETER_TYPE, num_blocks
from cloud.gpu.weight_only import ROW_TYPES, is_interpreted, tiling

try:  # torch brings Triton only where it brings CUDA
    import triton
    import triton.language as tl
except ImportError:
    triton = None


def four_bit_product(
    x: Tensor, codes: Tensor, scale: Tensor, low: Tensor, bias: Tensor | None
) -> Tensor:
    """x [T, K] in one of ROW_TYPES -> [T, N] in the same type. See the module's docstring.

    bias: [N] float32; all are contiguous. Raises TypeError for other types, ValueError for shapes
    that do not fit.
    """
    if x.dtype not in ROW_TYPES or codes.dtype != torch.uint8 or scale.dtype != PARAMETER_TYPE:
        raise TypeError(f"no product of {x.dtype} rows with {codes.dtype} and {scale.dtype}")
    num_rows, width = x.shape
    num_outputs, blocks = len(codes), num_blocks(width)
    groups = (num_outputs, 2 * blocks)
    if codes.shape[1] != GROUP * blocks or scale.shape != groups or low.shape != groups:
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
        low,
        scale if bias is None else bias,
        out,
        num_rows,
        num_outputs,
        width,
        HAS_BIAS=bias is not None,
        EVEN_K=width % BLOCK == 0,
        IN_FLOAT32=is_interpreted(),  # the interpreter multiplies no bfloat16
        BLOCK_T=plan.block_t,
        BLOCK_N=plan.block_n,
        GROUP=GROUP,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
        enable_fp_fusion=True,  # the default, which Triton warns that it will change
    )
    return out


def _launcher(grid: tuple[int, int]) -> Any:
    if triton is None:
        raise RuntimeError("4-bit weights on a GPU need Triton, which is not installed")
    return four_bit_kernel[grid]


if triton is not None:

    @triton.jit(do_not_specialize=["num_rows"])  # one binary for every T of a tile
    def four_bit_kernel(
        x_ptr,
        codes_ptr,
        scale_ptr,
        low_ptr,
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
        GROUP: tl.constexpr,
    ):
        """One tile [BLOCK_N, BLOCK_T] of y^T. Grid: tiles of T, then of N."""
        rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
        outputs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        steps = tl.arange(0, GROUP)
        # Rows beyond the end read row 0 and are not stored. 64 bits: a head may have 2^31 codes.
        rows_read = tl.where(rows < num_rows, rows, 0).to(tl.int64)
        outputs_read = tl.where(outputs < N, outputs, 0).to(tl.int64)
        blocks = tl.cdiv(K, 2 * GROUP)
        x_at = x_ptr + rows_read[None, :] * K + steps[:, None]
        codes_at = codes_ptr + outputs_read[:, None] * (blocks * GROUP) + steps[None, :]
        scale_at = scale_ptr + outputs_read * (2 * blocks)
        low_at = low_ptr + outputs_read * (2 * blocks)
        sums = tl.full((BLOCK_N, BLOCK_T), 0.0, dtype=tl.float32)
        for begin in range(0, K, 2 * GROUP):
            pairs = tl.load(codes_at)
            if EVEN_K:
                first = tl.load(x_at)
                second = tl.load(x_at + GROUP)
            else:
                first = tl.load(x_at, mask=(begin + steps < K)[:, None], other=0.0)
                inside = (begin + GROUP + steps < K)[:, None]
                second = tl.load(x_at + GROUP, mask=inside, other=0.0)
            if IN_FLOAT32:
                first = first.to(tl.float32)
                second = second.to(tl.float32)
            wide = (pairs & 15).to(tl.float32).to(first.dtype)  # exact, both times
            part = tl.dot(wide, first, input_precision="ieee")
            sums += part * tl.load(scale_at).to(tl.float32)[:, None]
            total = tl.sum(first.to(tl.float32), axis=0)
            sums += tl.load(low_at).to(tl.float32)[:, None] * total[None, :]
            wide = (pairs >> 4).to(tl.float32).to(second.dtype)
            part = tl.dot(wide, second, input_precision="ieee")
            sums += part * tl.load(scale_at + 1).to(tl.float32)[:, None]
            total = tl.sum(second.to(tl.float32), axis=0)
            sums += tl.load(low_at + 1).to(tl.float32)[:, None] * total[None, :]
            codes_at += GROUP
            x_at += 2 * GROUP
            scale_at += 2
            low_at += 2
        if HAS_BIAS:
            sums += tl.load(bias_ptr + outputs_read)[:, None]
        out_at = out_ptr + rows_read[None, :] * N + outputs_read[:, None]
        fits = (rows < num_rows)[None, :] & (outputs < N)[:, None]
        tl.store(out_at, sums.to(out_ptr.dtype.element_ty), mask=fits)
