"""Peak bytes of the edge process for every configuration, at any sequence length.

`optimizer.cost.memory` has the formulas: each part is asked for once, and `peak_bytes` adds them up
over the axes (named in `link_independent.py`). Everything in it grows with the length, so the
longest sequence that fits a limit is found by bisection.
"""

from __future__ import annotations

import math

import numpy as np

from hwprofiles.profiles.rates import Floats
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.cost.front_kernels import blocks_for, halves_on
from optimizer.cost.memory import (
    EdgeMemory,
    codec_bytes,
    edge_memory,
    pages_touched,
    peak_bytes,
    table_rows,
    workspace_bytes,
)
from optimizer.cost.streaming import layers_of_share
from optimizer.cost.weights import embedding_bytes
from optimizer.search.problem import FrontPrecision, Problem


class EdgeBytes:
    """The parts of `edge_memory`, [S, F, 1, K, C, H, D] when added up."""

    def __init__(self, problem: Problem) -> None:
        space, geometry = problem.space, problem.geometry
        self._context = geometry.context_length
        parts = [
            [_parts_of(problem, split, front) for front in space.fronts] for split in space.splits
        ]

        def over_fronts(name: str) -> Floats:  # [S, F, 1, 1, 1, 1, 1]
            values = [[getattr(part, name) for part in row] for row in parts]
            return np.array(values, dtype=np.float64)[:, :, None, None, None, None, None]

        self._runtime = over_fronts("runtime_bytes")
        self._weights = over_fronts("weight_bytes")
        self._load_peak = over_fronts("load_peak_bytes")
        embeddings = [embedding_bytes(geometry, front.front_bits) for front in space.fronts]
        self._embeddings = np.array(embeddings)[:, None, None, None, None, None]
        per_token = [
            [
                geometry.device_kv_bytes(num_layers=split, num_tokens=1, kv_bits=bits)
                for bits in space.kv_bits
            ]
            for split in space.splits
        ]
        self._kv = np.array(per_token, dtype=np.float64)[:, None, None, :, None, None, None]
        self._limited = problem.limits.edge_memory_bytes is not None
        keeps = [
            front.front_bits == 16
            and halves_on(
                problem.edge, geometry, exact=problem.exact_front or front.streamed_share > 0
            )
            for front in space.fronts
        ]
        self._keeps_file = np.array(keeps)[:, None, None, None, None, None]  # whose weights it has
        self._chunks = np.array(space.chunks, dtype=np.float64)[:, None]  # [H, 1]
        chunks = [workspace_bytes(geometry, chunk) for chunk in space.chunks]
        self._workspace = np.array(chunks)[:, None]  # [H, 1]
        drafts = np.array([draft.memory_bytes for draft in space.drafts])
        whole = np.array([split == geometry.num_layers for split in space.splits])
        is_whole = whole.reshape(-1, 1, 1, 1, 1, 1, 1)
        self._drafts = np.where(is_whole, 0.0, drafts)
        # A level touches its table or has none: what it touches of a table of this size.
        most = 1 << 40
        predicts = [codec_bytes(geometry, level.name, most) for level in space.levels]
        self._codec = np.where(is_whole, 0.0, np.array(predicts)[:, None, None])
        self._longest: dict[float, Floats] = {}

    def total(self, num_tokens: int | Floats) -> Floats:
        """Peak bytes at a length (or one for each configuration)."""
        rows = table_rows(num_tokens, self._chunks, limited=self._limited)
        return peak_bytes(
            runtime_bytes=self._runtime,
            weight_bytes=self._weights,
            embedding_bytes=pages_touched(
                self._embeddings, np.where(self._keeps_file, num_tokens, rows)
            ),
            kv_bytes=self._kv * num_tokens,
            workspace_bytes=self._workspace,
            load_peak_bytes=self._load_peak,
            codec_bytes=pages_touched(self._codec, rows),
            draft_bytes=self._drafts,
        )

    def longest(self, limit_bytes: float) -> Floats:
        """The longest sequence within `limit_bytes`, up to the model's context; 0 where not even
        one token fits. `total` never falls as tokens are added (KV is linear, the touched part of
        tables concave and rising), so bisection finds the last length that fits. Kept by limit:
        the link does not change it."""
        if limit_bytes in self._longest:
            return self._longest[limit_bytes]
        low = np.zeros(self.total(1).shape)
        high = np.full(low.shape, float(self._context))
        fits = self.total(high) <= limit_bytes
        low = np.where(fits, high, low)
        for _ in range(math.ceil(math.log2(self._context + 1))):
            middle = np.floor((low + high + 1) / 2)
            fits = self.total(middle) <= limit_bytes
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        self._longest[limit_bytes] = low
        return low


def _parts_of(problem: Problem, split: int, front: FrontPrecision) -> EdgeMemory:
    """The parts that neither cache, chunk nor length changes."""
    return edge_memory(problem.edge, front_plan(problem, split, front))


def front_plan(problem: Problem, split: int, front: FrontPrecision) -> Plan:
    """A plan with this front, and anything else."""
    bits = front.bits_at(split)
    mixed = bits is not None and len(set(bits)) > 1
    whole = split == problem.geometry.num_layers
    return Plan(
        model=ModelRef(id="", sha256="", geometry=problem.geometry),
        partition=Partition(split=split, front_bits=front.front_bits, back_bits=32),
        back_start=split,
        kv_bits=32,
        level="",
        max_tokens=1,
        prefill_chunk=1,
        front_layer_bits=bits if mixed and bits is not None else (),
        weight_blocks=blocks_for(front.front_bits, problem.weight_blocks),
        streamed_layers=layers_of_share(front.streamed_share, split, whole=whole),
        limits=problem.limits,
    )
