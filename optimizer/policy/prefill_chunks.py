"""How many prompt tokens the next chunk takes: a pure function of the chunks answered so far.

Three stages work at once: the edge computes chunk i+1 while chunk i crosses the link and chunk
i-1 runs in the cloud. A chunk of c tokens keeps stage s for a_s + b_s c seconds. With m the slowest
stage, n tokens take about

    c (sum b - b_m)   until the first chunk has reached the slowest stage, and the last has left it
    + n b_m + n/c a_m the slowest stage at work

which is least at c = sqrt(n a_m / (sum b - b_m)). Source: ours. Every pipeline trades the time to
fill it against the fixed cost of each piece. (The chunked prefill of Agrawal et al.,
arXiv:2308.16369, chooses the chunk for the server's batch instead.) a and b are fitted to the
chunks answered so far. The first chunk is a quarter of the plan's, which fills the pipeline four
times sooner. Until two sizes have been seen, later chunks are the plan's.

The plan's chunk is also the upper limit, because the edge's working memory was planned with it.

Times differ from run to run, and so do the chunks. A row computed alone may differ from the same
row computed among others (with 16-bit KV, 0.9 % of them). Any two larger sizes gave the same bits
(docs/results/edge.md). So no chunk leaves a single token to the next one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

FIRST_SHARE: Final = 4
# Kernels work in blocks of rows; below this a chunk costs about as much as a whole block.
GRAIN: Final = 16


class StageTimes(NamedTuple):
    """Seconds that one answered chunk of `num_tokens` kept each stage busy."""

    num_tokens: int
    edge_s: float
    link_s: float
    cloud_s: float


class StageCost(NamedTuple):
    """Seconds of a stage: `fixed_s` for each chunk and `per_token_s` for each token."""

    fixed_s: float
    per_token_s: float


def next_chunk(num_left: int, planned: int, answered: Sequence[StageTimes]) -> int:
    """Tokens of the next chunk, at most `planned` and `num_left`, both at least 1."""
    if not answered:
        first = max(_rounded_up(math.ceil(planned / FIRST_SHARE)), GRAIN)
        return _leaving_no_single(min(first if first < planned else planned, num_left), num_left)
    chunk = min(_best(num_left, answered) or planned, planned)
    # Chunks of equal size: a short last chunk would cost a whole pass for a few tokens.
    num_chunks = math.ceil(num_left / chunk)
    size = min(_rounded_up(math.ceil(num_left / num_chunks)), planned, num_left)
    return _leaving_no_single(size, num_left)


def _leaving_no_single(size: int, num_left: int) -> int:
    """A smaller chunk if one token would be left over, but none smaller than two."""
    if num_left - size != 1 or size <= 2:
        return size
    return size - GRAIN if size > GRAIN else size - 1


def _best(num_left: int, answered: Sequence[StageTimes]) -> int | None:
    """The docstring's formula, rounded up to GRAIN; None while the fixed costs are unknown."""
    if len({times.num_tokens for times in answered}) < 2:
        return None
    sizes = [times.num_tokens for times in answered]
    stages = [
        fit_stage(sizes, [times.edge_s for times in answered]),
        fit_stage(sizes, [times.link_s for times in answered]),
        fit_stage(sizes, [times.cloud_s for times in answered]),
    ]
    slowest = max(stages, key=lambda stage: stage.fixed_s + stage.per_token_s * max(sizes))
    others_s = sum(stage.per_token_s for stage in stages) - slowest.per_token_s
    if others_s <= 0 or slowest.fixed_s <= 0:
        return None
    return max(_rounded_up(math.ceil(math.sqrt(num_left * slowest.fixed_s / others_s))), GRAIN)


def fit_stage(sizes: Sequence[int], times_s: Sequence[float]) -> StageCost:
    """A stage's cost by least squares, no part below 0. sizes: tokens of each chunk."""
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(times_s, dtype=np.float64)
    spread = x - x.mean()
    slope = float(spread @ (y - y.mean()) / max(float(spread @ spread), 1e-12))
    slope = min(max(slope, 0.0), float(y.mean() / x.mean()))
    return StageCost(fixed_s=float(y.mean() - slope * x.mean()), per_token_s=slope)


def _rounded_up(num_tokens: int) -> int:
    return -(-num_tokens // GRAIN) * GRAIN
