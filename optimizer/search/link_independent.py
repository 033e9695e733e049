"""All that does not depend on the link, for every configuration: seconds, bytes, quality.

Computed once a problem and kept, so that planning anew for another link is a few additions.
Axes are named by letters, and every array keeps its axes at their place so that they broadcast:

    S split   F front   B back bits   K KV bits   C codec level   H chunk   D drafting

`lengths` are the sequence lengths at which the slowest step is looked for: a limit on TBT has to
hold for every step, so the slowest of all steps up to a length counts. That maximum cannot fall
as the length grows, whatever the profiles say, which is what makes the longest sequence a
bisection (`longest_steps_s` is a running maximum along its last axis).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from optimizer.cost.cloud import back_compute_bits, back_kv_bits, sample_s
from optimizer.cost.codec import LevelCost, answer_bytes, decode_s, encode_s, frame_bytes
from optimizer.cost.levels import level_at
from optimizer.cost.weights import back_weight_bytes
from optimizer.search.edge_bytes import EdgeBytes
from optimizer.search.problem import Problem
from optimizer.search.rates import Floats
from optimizer.search.steps import LayerBits, back_steps_s, front_steps_s

Mask = npt.NDArray[np.bool_]
LENGTHS_PER_OCTAVE = 5
SHORTEST_LENGTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """A prompt cut by one chunk size, chunk by chunk (last axis N)."""

    edge_s: Floats  # [S, F, 1, K, C, N]: front and encoder
    first_front_s: Floats  # [S, F, 1, K, 1]: the first chunk's front alone
    cloud_s: Floats  # [S, 1, B, 1, C, N]: waiting, decoder and back
    frame_bytes: Floats  # [S, 1, 1, 1, C, N]


class Tables:
    """The link-independent half of a problem. Raises ProfileError where a device has no kernel."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        space, geometry = problem.space, problem.geometry
        self.whole = np.array([split == geometry.num_layers for split in space.splits])
        self.is_whole = self.whole.reshape(-1, 1, 1, 1, 1, 1, 1)
        self.levels = [
            [level_at(level, problem.quality, split) for level in space.levels]
            for split in space.splits
        ]
        self.lengths = _lengths(problem)
        self.edge_bytes = EdgeBytes(problem)

    @cached_property
    def exists(self) -> Mask:
        """Which cells are configurations, [S, F, B, K, C, H, D] bool: the front exists at that
        split, and where an axis means nothing (no server, no cache) only its first choice."""
        space = self.problem.space
        shape = space.shape
        found = np.array(
            [[front.bits_at(split) is not None for front in space.fronts] for split in space.splits]
        )
        out = np.broadcast_to(found.reshape(*found.shape, 1, 1, 1, 1, 1), shape).copy()
        out[self.whole, :, 1:] = False
        out[self.whole, :, :, :, 1:] = False
        out[self.whole, ..., 1:] = False
        out[[split == 0 for split in space.splits], :, :, 1:] = False
        for index, draft in enumerate(space.drafts):
            if draft.split is not None:
                out[[split != draft.split for split in space.splits], ..., index] = False
        return out

    @cached_property
    def front_mid_s(self) -> Floats:
        """Front of one round in the middle of the answer, [S, F, 1, K, 1, 1, D]."""
        return self._fronts([self._middle])[..., 0]

    @cached_property
    def back_mid_s(self) -> Floats:
        """Back of that round, without waiting, [S, 1, B, 1, 1, 1, D]."""
        return self._backs([self._middle])[..., 0]

    @cached_property
    def longest_steps_s(self) -> Floats:
        """The slowest front and back (with waiting) up to each length, [S, F, B, K, 1, 1, D, N]."""
        steps = np.maximum.accumulate(
            self._fronts(self.lengths, ends=True)
            + (1 + self.queue_share) * self._backs(self.lengths, ends=True),
            axis=-1,
        )
        return np.asarray(steps)

    @cached_property
    def draft_s(self) -> Floats:
        """Seconds of guessing a round's drafts, [D]."""
        return np.array([draft.drafting.draft_s for draft in self.problem.space.drafts])

    @cached_property
    def tokens_per_round(self) -> Floats:
        """[S, 1, 1, 1, 1, 1, D]; 1 where the edge is whole."""
        values = [draft.drafting.tokens_per_round for draft in self.problem.space.drafts]
        return np.where(self.is_whole, 1.0, np.array(values))

    @cached_property
    def encode_s(self) -> Floats:
        """Encoding a round's frame, [S, 1, 1, 1, C, 1, D]."""
        return self._per_level(
            lambda level, rows: encode_s(level, hidden_size=self._D, num_rows=rows)
        )

    @cached_property
    def decode_s(self) -> Floats:
        """Decoding it, [S, 1, 1, 1, C, 1, D]."""
        return self._per_level(
            lambda level, rows: decode_s(level, hidden_size=self._D, num_rows=rows)
        )

    @cached_property
    def round_bytes(self) -> Floats:
        """Its bytes on the wire, [S, 1, 1, 1, C, 1, D]."""
        return self._per_level(
            lambda level, rows: frame_bytes(level, hidden_size=self._D, num_rows=rows)
        )

    @cached_property
    def answer_bytes(self) -> Floats:
        """Bytes of the answer to a round, [D]."""
        drafts = self.problem.space.drafts
        return np.array([answer_bytes(draft.drafting.tokens_per_round) for draft in drafts])

    @cached_property
    def sample_s(self) -> Floats:
        """Drawing a round's tokens, [S, 1, 1, 1, 1, 1, D]: in the cloud all rows' tokens, on a
        whole edge one."""
        problem = self.problem
        cloud = [
            sample_s(problem.cloud, problem.geometry, num_logits=rows) for rows in self._round_rows
        ]
        return np.where(self.is_whole, self.edge_sample_s, np.array(cloud))

    @cached_property
    def edge_sample_s(self) -> float:
        """Drawing one token on the edge."""
        return sample_s(self.problem.edge, self.problem.geometry, num_logits=1)

    @cached_property
    def cloud_sample_s(self) -> float:
        """Drawing one token in the cloud."""
        return sample_s(self.problem.cloud, self.problem.geometry, num_logits=1)

    @cached_property
    def cloud_s_per_token(self) -> Floats:
        """Seconds of the server a token, [S, 1, B, 1, C, 1, D]; 0 where it is not needed."""
        busy = self.decode_s + self.back_mid_s + self.sample_s
        batch = self.problem.limits.num_sessions
        return np.where(self.is_whole, 0.0, busy / batch / self.tokens_per_round)

    @cached_property
    def message_s(self) -> float:
        """What both network stacks add to a round trip."""
        figures = (self.problem.edge.overheads.message_s, self.problem.cloud.overheads.message_s)
        return sum(figure.effective for figure in figures if figure is not None)

    @cached_property
    def queue_share(self) -> float:
        """Waiting for the server's batch, in steps of it: half a one when others are there."""
        return 0.5 if self.problem.limits.num_sessions > 1 else 0.0

    @cached_property
    def quality_drop_pct(self) -> Floats:
        """Percent of perplexity, [S, F, B, K, C, 1, 1]."""
        space, model = self.problem.space, self.problem.quality
        front = np.array(
            [
                [model.front_drop(front.bits_at(split) or ()) for front in space.fronts]
                for split in space.splits
            ]
        )
        back = [
            [model.back_drop(split, bits) for bits in space.back_bits] for split in space.splits
        ]
        kv = [[model.kv_drop(split, bits) for bits in space.kv_bits] for split in space.splits]
        level = [[model.level_drop(s, item.name) for item in space.levels] for s in space.splits]
        total = front[:, :, None, None, None] + np.array(back)[:, None, :, None, None]
        total = total + np.array(kv)[:, None, None, :, None]
        total = total + np.array(level)[:, None, None, None, :]
        return np.asarray(100 * np.expm1(total)[..., None, None])

    @cached_property
    def cloud_weight_bytes(self) -> Floats:
        """The server's process with its weights and no session, [S, 1, B, 1, 1, 1, 1]."""
        problem, space = self.problem, self.problem.space
        lowest = problem.geometry.num_layers if problem.back_from is None else problem.back_from
        weights = np.array(
            [
                [
                    back_weight_bytes(
                        problem.geometry, min(split, lowest), back_compute_bits(problem.cloud, bits)
                    )
                    for bits in space.back_bits
                ]
                for split in space.splits
            ]
        )
        total = weights[:, None, :, None, None, None, None]
        total = total + problem.cloud.memory.runtime_base_bytes.value
        return np.where(self.is_whole, 0.0, total)

    @cached_property
    def cloud_kv_bytes_per_token(self) -> Floats:
        """A session's cache on the server, [S, 1, 1, 1, 1, 1, 1]."""
        geometry, space = self.problem.geometry, self.problem.space
        bits = back_kv_bits(self.problem.cloud)
        values = [
            geometry.kv_bytes(num_layers=geometry.num_layers - split, num_tokens=1, kv_bits=bits)
            for split in space.splits
        ]
        return np.array(values, dtype=np.float64).reshape(-1, 1, 1, 1, 1, 1, 1)

    @cached_property
    def prompts(self) -> tuple[Chunks, ...]:
        """The prompt of `Limits.prompt_tokens`, cut by each chunk size."""
        return tuple(self._prompt(chunk) for chunk in self.problem.space.chunks)

    @property
    def _D(self) -> int:  # noqa: N802 - the width of the residual stream, as everywhere
        return self.problem.geometry.hidden_size

    @property
    def _middle(self) -> int:
        """Tokens cached before the round in the middle of the answer, as `predict_request`."""
        return self.problem.limits.prompt_tokens + (self.problem.answer_tokens - 1) // 2

    @cached_property
    def _round_rows(self) -> list[int]:
        return [1 + draft.drafting.num_drafts for draft in self.problem.space.drafts]

    def _per_level(self, cost: Callable[[LevelCost, int], float]) -> Floats:
        """`cost(level, rows)` at every split, level and drafting; equal levels are asked once."""
        known: dict[tuple[LevelCost, int], float] = {}
        out = np.empty((len(self.levels), len(self.levels[0]), len(self._round_rows)))
        for s, levels in enumerate(self.levels):
            for c, level in enumerate(levels):
                for d, rows in enumerate(self._round_rows):
                    key = (level, rows)
                    if key not in known:
                        known[key] = cost(level, rows)
                    out[s, c, d] = known[key]
        return out[:, None, None, None, :, None, :]

    def _layer_bits(self, front: int) -> list[LayerBits]:
        space = self.problem.space
        uniform = space.fronts[front].front_bits
        return [space.fronts[front].bits_at(split) or (uniform,) * split for split in space.splits]

    def _front_steps(self, front: int, kv_bits: int, rows: int, positions: Sequence[int]) -> Floats:
        problem = self.problem
        return front_steps_s(
            problem.edge,
            problem.geometry,
            layer_bits=self._layer_bits(front),
            embedding_bits=problem.space.fronts[front].front_bits,
            kv_bits=kv_bits,
            num_rows=rows,
            positions=positions,
            exact=problem.exact_front,
        )

    def _fronts(self, tokens: Sequence[int], *, ends: bool = False) -> Floats:
        """Fronts of a round, [S, F, 1, K, 1, 1, D, N]; `tokens` are cached before it, or, with
        `ends`, after it."""
        space = self.problem.space
        out = np.empty((*(space.shape[i] for i in (0, 1, 3, 6)), len(tokens)))
        for d, rows in enumerate(self._round_rows):
            positions = [max(n - rows, 0) for n in tokens] if ends else list(tokens)
            for f in range(len(space.fronts)):
                for k, bits in enumerate(space.kv_bits):
                    out[:, f, k, d] = self._front_steps(f, bits, rows, positions)
        alone = self._whole_fronts(tokens, ends=ends) if self.whole.any() else None
        if alone is not None:  # nobody drafts for a whole edge
            out[self.whole] = alone[:, :, :, None]
        return out[:, :, None, :, None, None]

    def _whole_fronts(self, tokens: Sequence[int], *, ends: bool) -> Floats:
        """One-row steps at the whole split, [W, F, K, N]."""
        space = self.problem.space
        positions = [max(n - 1, 0) for n in tokens] if ends else list(tokens)
        out = np.empty((int(self.whole.sum()), len(space.fronts), len(space.kv_bits), len(tokens)))
        for f in range(len(space.fronts)):
            for k, bits in enumerate(space.kv_bits):
                out[:, f, k] = self._front_steps(f, bits, 1, positions)[self.whole]
        return out

    def _backs(self, tokens: Sequence[int], *, ends: bool = False) -> Floats:
        """Backs of a round, [S, 1, B, 1, 1, 1, D, N]; 0 where the edge is whole."""
        space, batch = self.problem.space, self.problem.limits.num_sessions
        out = np.empty((*(space.shape[i] for i in (0, 2, 6)), len(tokens)))
        for d, rows in enumerate(self._round_rows):
            positions = [max(n - rows, 0) for n in tokens] if ends else list(tokens)
            for b, bits in enumerate(space.back_bits):
                out[:, b, d] = back_steps_s(
                    self.problem.cloud,
                    self.problem.geometry,
                    splits=space.splits,
                    back_bits=bits,
                    num_rows=rows,
                    positions=positions,
                    num_logits=rows,
                    others=batch - 1,
                    other_rows=rows,
                )
        out[self.whole] = 0.0
        return out[:, None, :, None, None, None]

    def _prompt(self, chunk: int) -> Chunks:
        problem, space = self.problem, self.problem.space
        prompt = problem.limits.prompt_tokens
        starts = list(range(0, prompt, chunk))
        rows = [min(chunk, prompt - start) for start in starts]
        # Runs of equal chunks: full ones, then the last chunk, which alone makes logits.
        runs = [(rows[0], starts[:-1], False)] if len(rows) > 1 else []
        runs.append((rows[-1], starts[-1:], True))
        shape = [space.shape[i] for i in (0, 1, 3)]
        front = np.empty((*shape, len(starts)))
        back = np.empty((space.shape[0], space.shape[2], len(starts)))
        at = 0
        for count, places, is_last in runs:
            span = slice(at, at + len(places))
            for f in range(len(space.fronts)):
                for k, bits in enumerate(space.kv_bits):
                    front[:, f, k, span] = self._front_steps(f, bits, count, places)
            for b, bits in enumerate(space.back_bits):
                back[:, b, span] = self._prompt_backs(bits, count, places, is_last)
            at += len(places)
        encode, decode, sizes = (
            np.empty((len(self.levels), len(space.levels), len(starts))) for _ in range(3)
        )
        for s, levels in enumerate(self.levels):
            for c, level in enumerate(levels):
                for count, span in ((rows[0], slice(0, -1)), (rows[-1], slice(-1, None))):
                    asked = {"hidden_size": self._D, "num_rows": count}
                    encode[s, c, span] = encode_s(level, **asked)
                    decode[s, c, span] = decode_s(level, **asked)
                    sizes[s, c, span] = frame_bytes(level.of_prompt, **asked)
        for part in (encode, decode, sizes, back):
            part[self.whole] = 0.0  # nothing leaves a whole edge
        over_levels = (slice(None), None, None, None)
        return Chunks(
            edge_s=front[:, :, None, :, None] + encode[over_levels],
            first_front_s=front[:, :, None, :, None, 0],
            cloud_s=(1 + self.queue_share) * back[:, None, :, None, None] + decode[over_levels],
            frame_bytes=sizes[over_levels],
        )

    def _prompt_backs(self, bits: int, count: int, places: list[int], is_last: bool) -> Floats:
        """Backs of chunks of `count` rows at `places`, [S, N], beside the others' decode rows
        (a last chunk of one row is one of their kind, see `optimizer.cost.request`)."""
        return back_steps_s(
            self.problem.cloud,
            self.problem.geometry,
            splits=self.problem.space.splits,
            back_bits=bits,
            num_rows=count,
            positions=places,
            num_logits=int(is_last),
            others=self.problem.limits.num_sessions - 1,
            other_rows=1,
        )


def _lengths(problem: Problem) -> list[int]:
    """Sequence lengths to look for the slowest step at: five an octave, the required and the
    model's longest."""
    context = problem.geometry.context_length
    lengths = {problem.max_tokens, context}
    length, step = float(SHORTEST_LENGTH), 2 ** (1 / LENGTHS_PER_OCTAVE)
    while length < context:
        lengths.add(int(length))
        length *= step
    return sorted(n for n in lengths if n <= context)
