"""The uniform number of a position, on the device: the bits of `decoding.sampler.uniform`.

Philox 4x64 with 10 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
as numpy has it: the counter is raised before the first draw, and the first 64 bits give a float64
of 53 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _uniform(seeds, positions, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    key0 = tl.load(seeds + at, mask=inside, other=0).to(tl.uint64, bitcast=True)
    key1 = tl.zeros([BLOCK], tl.uint64)
    c0 = tl.load(positions + at, mask=inside, other=0).to(tl.uint64) + 1
    c1 = tl.zeros([BLOCK], tl.uint64)
    c2 = tl.zeros([BLOCK], tl.uint64)
    c3 = tl.zeros([BLOCK], tl.uint64)
    m0 = tl.full([BLOCK], 0xD2E7470EE14C6C93, tl.uint64)
    m1 = tl.full([BLOCK], 0xCA5A826395121157, tl.uint64)
    w0 = tl.full([BLOCK], 0x9E3779B97F4A7C15, tl.uint64)
    w1 = tl.full([BLOCK], 0xBB67AE8584CAA73B, tl.uint64)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(m0, c0)
        low0 = m0 * c0
        high1 = tl.umulhi(m1, c2)
        low1 = m1 * c2
        c0 = high1 ^ c1 ^ key0
        c1 = low1
        c2 = high0 ^ c3 ^ key1
        c3 = low0
        key0 += w0
        key1 += w1
    value = (c0 >> 11).to(tl.float64) * (1.0 / 9007199254740992.0)
    tl.store(out + at, value, mask=inside)


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """Uniform numbers in [0, 1): float64 [N]. seeds: int64 [N], the bits of unsigned seeds;
    positions: int64 [N]."""
    out = torch.empty(seeds.shape, dtype=torch.float64, device=seeds.device)
    _uniform[(triton.cdiv(seeds.numel(), 64),)](
        seeds, positions, out, seeds.numel(), BLOCK=64, num_warps=2
    )
    return out
