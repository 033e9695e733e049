"""Seconds of front, back and codec at every split, for the rounds and prompts of one problem.

The formulas are `optimizer.cost`'s, asked for all splits and positions at once; this puts what they
say on the axes of the grid (letters as in `link_independent.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from hwprofiles.profiles.rates import Floats
from optimizer.cost.cloud import BackCost, back_kv_bits, lone_step_s
from optimizer.cost.codec import LevelCost, decode_s, encode_s, frame_bytes
from optimizer.cost.edge import (
    LayerBits,
    answer_step_s,
    chunk_runs,
    front_steps,
    middle_row,
)
from optimizer.cost.levels import level_at
from optimizer.cost.prompt import IDS_A_BATCH
from optimizer.cost.round_trip import PromptChunks, queue_s
from optimizer.cost.streaming import reading_s
from optimizer.search.edge_bytes import front_plan
from optimizer.search.problem import Problem


class LevelFormula(Protocol):
    """A cost of one message: of `optimizer.cost.codec`."""

    def __call__(self, level: LevelCost, /, *, hidden_size: int, num_rows: int) -> float: ...


class StepTimes:
    """The rounds and prompts of a problem. Raises ProfileError where a device has no kernel."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        geometry, space = problem.geometry, problem.space
        self._whole = np.array([split == geometry.num_layers for split in space.splits])
        self._levels = [
            [level_at(level, problem.quality, split) for level in space.levels]
            for split in space.splits
        ]
        self.round_rows = [1 + draft.drafting.num_drafts for draft in space.drafts]

    @cached_property
    def encode_s(self) -> Floats:
        """Encoding a round's frame, [S, 1, 1, 1, C, 1, D]; 0 on a whole edge."""
        return self._round_level(encode_s)

    @cached_property
    def decode_s(self) -> Floats:
        """Decoding a round's frame, [S, 1, 1, 1, C, 1, D]; 0 on a whole edge."""
        return self._round_level(decode_s)

    @cached_property
    def round_bytes(self) -> Floats:
        """Bytes of a round's message on the wire, [S, 1, 1, 1, C, 1, D]; 0 on a whole edge."""
        return self._round_level(frame_bytes)

    def rounds_front_s(self, tokens: Sequence[int], *, ends: bool = False) -> Floats:
        """Fronts of a round, one row after the other, [S, F, 1, K, 1, 1, D, N]; `tokens` are cached
        before it, or, with `ends`, after it."""
        space = self._problem.space
        out = np.empty((*(space.shape[i] for i in (0, 1, 3, 6)), len(tokens)))
        for rows in set(self.round_rows):
            places = [middle_row(at, rows) for at in _positions(tokens, rows, ends=ends)]
            values = rows * self._fronts(1, places)
            out[:, :, :, [r == rows for r in self.round_rows]] = values[:, :, :, None]
        if self._whole.any():  # nobody drafts for a whole edge
            alone = self._fronts(1, _positions(tokens, 1, ends=ends))
            out[self._whole] = alone[self._whole][:, :, :, None]
        edge = self._problem.edge
        whole = self._whole.reshape(-1, 1, 1, 1, 1)
        alone_s, asking_s = (answer_step_s(edge, out, waits=waits) for waits in (False, True))
        return np.where(whole, alone_s, asking_s)[:, :, None, :, None, None]

    def rounds_back_s(self, tokens: Sequence[int], *, ends: bool = False) -> Floats:
        """Backs of a round, [S, 1, B, 1, 1, 1, D, N]; 0 on a whole edge."""
        space = self._problem.space
        out = np.empty((*(space.shape[i] for i in (0, 2, 6)), len(tokens)))
        for d, rows in enumerate(self.round_rows):
            positions = _positions(tokens, rows, ends=ends)
            out[:, :, d] = self._backs(rows, positions, num_logits=rows)
        problem = self._problem
        seconds = np.asarray(lone_step_s(problem.cloud, out, problem.limits.num_sessions))
        seconds[self._whole] = 0.0
        return seconds[:, None, :, None, None, None]

    def prompt(self, chunk: int, *, first: int = 0) -> PromptChunks:
        """The prompt's rows from token `first` on, in chunks of `chunk`: edge_s [S, F, 1, K, C, N],
        cloud_s [S, 1, B, 1, C, N], frame_bytes [S, 1, 1, 1, C, N].
        """
        limits = self._problem.limits
        runs = chunk_runs(limits.prompt_tokens - first, chunk)
        fronts, backs, encoding, decoding, sizes = [], [], [], [], []
        for rows, from_first in runs:
            starts = [first + start for start in from_first]
            is_last = starts[-1] + rows == limits.prompt_tokens
            fronts.append(self._fronts(rows, starts))
            backs.append(self._backs(rows, starts, num_logits=int(is_last)))
            count = len(starts)
            encoding.append(np.repeat(self._of_prompt(encode_s, rows), count, axis=-1))
            decoding.append(np.repeat(self._of_prompt(decode_s, rows), count, axis=-1))
            sizes.append(np.repeat(self._of_prompt(frame_bytes, rows), count, axis=-1))
        front_s = np.concatenate(fronts, axis=-1)[:, :, None, :, None]
        back_s = np.concatenate(backs, axis=-1)[:, None, :, None, None]
        over_levels = (slice(None), None, None, None)
        return PromptChunks(
            edge_s=front_s + np.concatenate(encoding, axis=-1)[over_levels],
            cloud_s=queue_s(back_s, limits.num_sessions)
            + np.concatenate(decoding, axis=-1)[over_levels]
            + back_s,
            frame_bytes=np.concatenate(sizes, axis=-1)[over_levels],
        )

    def fill_s(self, chunk: int, num_tokens: int) -> Floats:
        """The front over a prompt's first `num_tokens` in chunks, [S, F, 1, K, 1]."""
        runs = chunk_runs(num_tokens, chunk)
        total = sum(self._fronts(rows, starts).sum(axis=-1) for rows, starts in runs)
        return np.asarray(total)[:, :, None, :, None]

    def ids_s(self, frames: Sequence[tuple[int, int]]) -> Floats:
        """Frames of ids through all layers on the server, waiting included, [S, 1, B, 1, 1, N].

        frames: tokens and first position of each. As `optimizer.cost.prompt` has it.
        """
        problem, space = self._problem, self._problem.space
        sessions, prompt = problem.limits.num_sessions, problem.limits.prompt_tokens
        # Alone on the server, a prompt takes the same whatever the split.
        splits = space.splits if sessions > 1 else space.splits[:1]
        out = np.zeros((len(splits), len(space.back_bits), len(frames)))
        for index, (num_rows, position) in enumerate(frames):
            for rows, starts in chunk_runs(num_rows, IDS_A_BATCH):
                for at, s, b in itertools.product(starts, range(len(splits)), range(out.shape[1])):
                    step_s = self._whole_costs[b].shared_step_s(
                        num_rows=rows,
                        position=float(position + at),
                        num_logits=int(position + at + rows == prompt),
                        batch=sessions,
                        others_skip=splits[s],
                    )
                    out[s, b, index] += step_s + queue_s(step_s, sessions)
        full = np.broadcast_to(out, (space.shape[0], *out.shape[1:]))
        return full[:, None, :, None, None]

    def _fronts(self, num_rows: int, positions: Sequence[int]) -> Floats:
        """Seconds of the front, [S, F, K, N]."""
        problem, space = self._problem, self._problem.space
        out = np.empty((*(space.shape[i] for i in (0, 1, 3)), len(positions)))
        for f, front in enumerate(space.fronts):
            layer_bits: list[LayerBits] = [
                front.bits_at(split) or (front.front_bits,) * split for split in space.splits
            ]
            reading = [
                reading_s(problem.edge, front_plan(problem, split, front)) for split in space.splits
            ]
            for k, kv_bits in enumerate(space.kv_bits):
                out[:, f, k] = front_steps(
                    problem.edge,
                    problem.geometry,
                    layer_bits=layer_bits,
                    weight_bits=front.front_bits,
                    kv_bits=kv_bits,
                    num_rows=num_rows,
                    positions=positions,
                    exact=problem.exact_front,
                    reading_s=reading if any(reading) else (),
                ).total_s
        return out

    def _backs(self, num_rows: int, positions: Sequence[int], *, num_logits: int) -> Floats:
        """Seconds of the back beside the other sessions' rows, [S, B, N]; 0 on a whole edge."""
        space = self._problem.space
        out = np.empty((space.shape[0], space.shape[2], len(positions)))
        for b, back in enumerate(self._back_costs):
            out[:, b] = back.shared_step_s(
                num_rows=num_rows,
                position=np.asarray(positions, dtype=np.float64),
                num_logits=num_logits,
                batch=self._problem.limits.num_sessions,
            )
        out[self._whole] = 0.0
        return out

    @cached_property
    def _back_costs(self) -> list[BackCost]:
        """For each of the back's bits, the backs of all splits."""
        problem = self._problem
        return [
            BackCost(
                problem.cloud,
                problem.geometry,
                num_layers=problem.geometry.num_layers - np.array(problem.space.splits)[:, None],
                back_bits=bits,
                kv_bits=back_kv_bits(problem.cloud, bits),
            )
            for bits in problem.space.back_bits
        ]

    @cached_property
    def _whole_costs(self) -> list[BackCost]:
        """For each of the back's bits, all layers."""
        problem = self._problem
        return [
            BackCost(
                problem.cloud,
                problem.geometry,
                num_layers=problem.geometry.num_layers,
                back_bits=bits,
                kv_bits=back_kv_bits(problem.cloud, bits),
            )
            for bits in problem.space.back_bits
        ]

    def _round_level(self, cost: LevelFormula) -> Floats:
        values = [self._of_levels(cost, rows) for rows in self.round_rows]
        return np.stack(values, axis=-1)[:, None, None, None, :, None, :]

    def _of_prompt(self, cost: LevelFormula, num_rows: int) -> Floats:
        return self._of_levels(cost, num_rows, of_prompt=True)[:, :, None]

    def _of_levels(self, cost: LevelFormula, num_rows: int, *, of_prompt: bool = False) -> Floats:
        """`cost` at every split and level, [S, C]; equal levels are asked once. 0 on a whole edge,
        which nothing leaves."""
        known: dict[LevelCost, float] = {}
        hidden_size = self._problem.geometry.hidden_size
        out = np.zeros((len(self._levels), len(self._levels[0])))
        for s, levels in enumerate(self._levels):
            for c, level in enumerate(levels):
                if self._whole[s]:
                    continue
                if level not in known:
                    asked = level.of_prompt if of_prompt else level
                    known[level] = cost(asked, hidden_size=hidden_size, num_rows=num_rows)
                out[s, c] = known[level]
        return out


def _positions(tokens: Sequence[int], num_rows: int, *, ends: bool) -> list[int]:
    return [max(n - num_rows, 0) for n in tokens] if ends else list(tokens)
