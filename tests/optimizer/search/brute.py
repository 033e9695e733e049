"""The optimizer's answer the slow way: one configuration at a time, through the scalar models."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.artifacts.prediction import Limits
from optimizer.cost.cloud import back_compute_bits, back_kv_bits
from optimizer.cost.levels import level_at
from optimizer.cost.link import LinkPoint
from optimizer.cost.memory import edge_memory
from optimizer.cost.request import DraftedRound
from optimizer.cost.weights import back_weight_bytes
from optimizer.search.problem import Cell, Problem
from tests.optimizer.reference.request import (
    Deployment,
    Drafting,
    RequestTime,
    predict_request,
    round_parts,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one configuration predicts; `longest_tbt_s` by sequence length."""

    cell: Cell
    tbt_s: float
    ttft_s: float
    cloud_s_per_token: float
    quality_drop_pct: float
    cost_per_million: float
    longest_tbt_s: dict[int, float]


class BruteForce:
    """Every configuration of a problem over one link."""

    def __init__(self, problem: Problem, link: LinkPoint, lengths: list[int]) -> None:
        self.problem = problem
        self.link = link
        self.lengths = lengths
        axes = [range(size) for size in problem.space.shape]
        cells = (Cell(*indices) for indices in itertools.product(*axes))
        self.outcomes = [self._outcome(cell) for cell in cells if self._exists(cell)]

    def values(self, outcome: Outcome, limits: Limits, tokens: int) -> dict[str, float]:
        """What an outcome puts against each limit that there is."""
        problem = self.problem
        split = problem.space.splits[outcome.cell.split]
        whole = split == problem.geometry.num_layers
        bits = problem.space.back_bits[outcome.cell.back]
        blocks = math.ceil(tokens / 16)
        session = problem.geometry.kv_bytes(
            num_layers=problem.geometry.num_layers - split,
            num_tokens=16 * blocks,
            kv_bits=back_kv_bits(problem.cloud, bits),
        )
        weights = back_weight_bytes(problem.geometry, split, back_compute_bits(problem.cloud, bits))
        base = problem.cloud.memory.runtime_base_bytes.value
        cloud = 0.0 if whole else base + weights + limits.num_sessions * session
        return {
            "edge memory": self.edge_bytes(outcome.cell, tokens),
            "cloud memory per session": session,
            "cloud memory": cloud,
            "TBT": max(
                seconds
                for length, seconds in outcome.longest_tbt_s.items()
                if length <= min(n for n in self.lengths if n >= tokens)
            ),
            "TTFT": outcome.ttft_s,
            "quality drop": outcome.quality_drop_pct,
        }

    def keeps(self, outcome: Outcome, limits: Limits, tokens: int) -> bool:
        """Whether an outcome keeps all limits at a sequence length."""
        bounds = self.bounds(limits)
        values = self.values(outcome, limits, tokens)
        return all(values[name] <= bound for name, bound in bounds.items())

    def bounds(self, limits: Limits) -> dict[str, float]:
        """The limits that there are, by name."""
        problem = self.problem
        found = {
            "edge memory": limits.edge_memory_bytes or problem.edge.memory.usable_bytes.value,
            "cloud memory": limits.cloud_memory_bytes or problem.cloud.memory.usable_bytes.value,
            "cloud memory per session": limits.cloud_memory_per_session_bytes,
            "TBT": limits.max_tbt_s,
            "TTFT": limits.max_ttft_s,
            "quality drop": limits.max_quality_drop_pct,
        }
        return {name: bound for name, bound in found.items() if bound is not None}

    def longest(self, outcome: Outcome, limits: Limits) -> int:
        """The longest sequence that keeps all limits, from the required one on, one by one."""
        tokens = self.problem.max_tokens
        while tokens < self.problem.geometry.context_length and self.keeps(
            outcome, limits, tokens + 1
        ):
            tokens += 1
        return tokens

    def edge_bytes(self, cell: Cell, tokens: int) -> float:
        """Peak memory of the edge, through a Plan."""
        space = self.problem.space
        front, split = space.fronts[cell.front], space.splits[cell.split]
        bits = front.bits_at(split)
        assert bits is not None
        draft = space.drafts[cell.draft].memory_bytes
        plan = Plan(
            model=ModelRef(id="m", sha256="", geometry=self.problem.geometry),
            partition=Partition(split=split, front_bits=front.front_bits, back_bits=32),
            back_start=split,
            kv_bits=space.kv_bits[cell.kv],
            level=space.levels[cell.level].name,
            max_tokens=tokens,
            prefill_chunk=space.chunks[cell.chunk],
            front_layer_bits=bits if front.layer_bits else (),
            weight_blocks=self.problem.weight_blocks if front.front_bits <= 8 else "small",
        )
        return edge_memory(self.problem.edge, plan).total_bytes + draft

    def _cost(self, deployment: Deployment, drafting: DraftedRound, time: RequestTime) -> float:
        """Money for a million tokens: the formula of the docs, once more."""
        prices, power = self.problem.prices, deployment.edge.power
        stated = None if power is None else power.load_watts or power.max_watts
        watts = 0.0 if stated is None else stated.value
        parts = time.round_parts
        tokens = 1.0 if deployment.is_whole else drafting.tokens_per_round
        draft_s = 0.0 if deployment.is_whole else drafting.draft_s
        sampled_s = parts.sample_s if deployment.is_whole else 0.0
        busy_s = (parts.front_s + parts.encode_s + draft_s + sampled_s) / tokens
        server = time.cloud_s_per_token / 3600 * (prices.cloud_per_hour or 0)
        return 1e6 * (server + watts * busy_s / 3.6e6 * (prices.energy_per_kwh or 0))

    def _exists(self, cell: Cell) -> bool:
        space = self.problem.space
        split = space.splits[cell.split]
        if split == self.problem.geometry.num_layers and (cell.back or cell.level or cell.draft):
            return False
        if split == 0 and (cell.kv or cell.level):
            return False
        if space.drafts[cell.draft].split not in (None, split):
            return False
        return space.fronts[cell.front].bits_at(split) is not None

    def _outcome(self, cell: Cell) -> Outcome:
        problem, space = self.problem, self.problem.space
        split, front = space.splits[cell.split], space.fronts[cell.front]
        bits = front.bits_at(split)
        assert bits is not None
        deployment = Deployment(
            edge=problem.edge,
            cloud=problem.cloud,
            link=self.link,
            geometry=problem.geometry,
            partition=Partition(
                split=split, front_bits=front.front_bits, back_bits=space.back_bits[cell.back]
            ),
            kv_bits=space.kv_bits[cell.kv],
            level=level_at(space.levels[cell.level], problem.quality, split),
            chunk=space.chunks[cell.chunk],
            exact_front=problem.exact_front,
            front_layer_bits=bits if front.layer_bits else (),
        )
        drafting = space.drafts[cell.draft].drafting
        batch = problem.limits.num_sessions
        time = predict_request(
            deployment,
            prompt_tokens=problem.limits.prompt_tokens,
            new_tokens=problem.answer_tokens,
            batch=batch,
            drafting=Drafting(
                num_drafts=drafting.num_drafts,
                tokens_per_round=drafting.tokens_per_round,
                draft_s=drafting.draft_s,
            ),
        )
        rows = 1 if deployment.is_whole else 1 + drafting.num_drafts
        steps = {
            length: (
                round_parts(
                    deployment,
                    position=max(length - rows, 0),
                    num_rows=rows,
                    batch=batch,
                    num_answers=1.0 if deployment.is_whole else drafting.tokens_per_round,
                ).total_s
                + (0.0 if deployment.is_whole else drafting.draft_s)
            )
            / (1.0 if deployment.is_whole else drafting.tokens_per_round)
            for length in self.lengths
        }
        drop = problem.quality.drop_pct(
            split=split,
            layer_bits=bits,
            back_bits=space.back_bits[cell.back],
            kv_bits=space.kv_bits[cell.kv],
            level=space.levels[cell.level].name,
        )
        return Outcome(
            cell=cell,
            tbt_s=time.tbt_s,
            ttft_s=time.ttft_s,
            cloud_s_per_token=time.cloud_s_per_token,
            quality_drop_pct=drop,
            cost_per_million=self._cost(deployment, drafting, time),
            longest_tbt_s=steps,
        )
