"""All that does not depend on the link, for every configuration: seconds, bytes, quality.

Computed once a problem and kept, so that planning anew for another link is a few additions.
Axes are named by letters, and every array keeps its axes at their place so that they broadcast:

    S split   F front   B back bits   K KV bits   C codec level   H chunk   D drafting

`lengths` are the sequence lengths at which the slowest step is looked for: a limit on TBT has to
hold for every step, so the slowest of all steps up to a length counts. That maximum cannot fall
as the length grows, whatever the profiles say, which is what makes the longest sequence a
bisection (`longest_layers_s` is a running maximum along its last axis).
"""

from __future__ import annotations

from functools import cached_property
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from hwprofiles.profiles.rates import Floats
from optimizer.cost.cloud import back_compute_bits, back_kv_bits, sample_s
from optimizer.cost.codec import answer_bytes
from optimizer.cost.prompt import id_frame_bytes, id_frames
from optimizer.cost.request import middle_position
from optimizer.cost.round_trip import PromptChunks, RequestParts, queue_s, stacks_s
from optimizer.cost.uncertainty import TermErrors, Terms
from optimizer.cost.weights import back_weight_bytes
from optimizer.search.edge_bytes import EdgeBytes
from optimizer.search.problem import Problem
from optimizer.search.step_times import StepTimes

Mask = npt.NDArray[np.bool_]
LENGTHS_PER_OCTAVE: Final = 5
SHORTEST_LENGTH: Final = 32


PlacedKey: TypeAlias = tuple[float, bytes, TermErrors | None]


class PlacedPrompts(NamedTuple):
    """Seconds until the prompt's last layer, the place as its number in PREFILL_PLACES, and what
    the seconds depend on (None: nobody asked), each [S, F, B, K, C, H]."""

    stages_s: Floats
    places: npt.NDArray[np.int64]
    terms: Terms | None = None


class LinkIndependent:
    """The link-independent half of a problem. Raises ProfileError where a device has no kernel."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        space, geometry = problem.space, problem.geometry
        self.whole = np.array([split == geometry.num_layers for split in space.splits])
        self.is_whole = self.whole.reshape(-1, 1, 1, 1, 1, 1, 1)
        self.lengths = _lengths(problem)
        self.edge_bytes = EdgeBytes(problem)
        self.times = StepTimes(problem)
        self.placed: dict[PlacedKey, PlacedPrompts] = {}  # of `prompt_places`
        self._with_ids: dict[tuple[int, int], PromptChunks] = {}

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
        at_0 = [split == 0 for split in space.splits]
        out[at_0, :, :, 1:] = False
        out[at_0, :, :, :, 1:] = False  # no cache, and no hidden state to compress
        for index, draft in enumerate(space.drafts):
            if draft.split is not None:
                out[[split != draft.split for split in space.splits], ..., index] = False
        return out

    @cached_property
    def front_mid_s(self) -> Floats:
        """Front of one round in the middle of the answer, [S, F, 1, K, 1, 1, D]."""
        return self.times.rounds_front_s([self._middle])[..., 0]

    @cached_property
    def back_mid_s(self) -> Floats:
        """Back of that round, without waiting, [S, 1, B, 1, 1, 1, D]."""
        return self.times.rounds_back_s([self._middle])[..., 0]

    @cached_property
    def longest_layers_s(self) -> Floats:
        """The slowest front and back (with waiting) up to each length, [S, F, B, K, 1, 1, D, N]."""
        back_s = self.times.rounds_back_s(self.lengths, ends=True)
        parts = RequestParts(
            front_s=self.times.rounds_front_s(self.lengths, ends=True),
            back_s=back_s,
            queue_s=queue_s(back_s, self.problem.limits.num_sessions),
        )
        return np.asarray(np.maximum.accumulate(parts.layers_s, axis=-1))

    @cached_property
    def draft_s(self) -> Floats:
        """Seconds of guessing a round's drafts, [S, 1, 1, 1, 1, 1, D]; 0 where the edge is
        whole."""
        values = [draft.drafting.draft_s for draft in self.problem.space.drafts]
        return np.where(self.is_whole, 0.0, np.array(values))

    @cached_property
    def tokens_per_round(self) -> Floats:
        """[S, 1, 1, 1, 1, 1, D]; 1 where the edge is whole."""
        values = [draft.drafting.tokens_per_round for draft in self.problem.space.drafts]
        return np.where(self.is_whole, 1.0, np.array(values))

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
            sample_s(problem.cloud, problem.geometry, num_logits=rows)
            for rows in self.times.round_rows
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
    def stack_s(self) -> float:
        """What both network stacks add to a round trip."""
        return stacks_s(self.problem.edge, self.problem.cloud)

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
        """A session's cache on the server, [S, 1, B, 1, 1, 1, 1]."""
        geometry, space = self.problem.geometry, self.problem.space
        caches = [back_kv_bits(self.problem.cloud, bits) for bits in space.back_bits]
        values = [
            [
                geometry.kv_bytes(
                    num_layers=geometry.num_layers - split, num_tokens=1, kv_bits=bits
                )
                for bits in caches
            ]
            for split in space.splits
        ]
        return np.array(values, dtype=np.float64)[:, None, :, None, None, None, None]

    @cached_property
    def prompts(self) -> tuple[PromptChunks, ...]:
        """The prompt of `Limits.prompt_tokens`, cut by each chunk size."""
        return tuple(self.times.prompt(chunk) for chunk in self.problem.space.chunks)

    def prompt_with_ids(self, index: int, num_ids: int) -> PromptChunks:
        """The prompt cut by chunk size number `index`, its first `num_ids` (at least 1) as ids.

        Frames of ids come first, as in `optimizer.cost.prompt`; what only rows have is 0 there.
        """
        key = (index, num_ids)
        if key not in self._with_ids:
            self._with_ids[key] = self._cut_with_ids(self.problem.space.chunks[index], num_ids)
        return self._with_ids[key]

    def _cut_with_ids(self, chunk: int, num_ids: int) -> PromptChunks:
        prompt = self.problem.limits.prompt_tokens
        sizes = np.array(id_frame_bytes(prompt, num_ids), dtype=np.float64)
        ids = PromptChunks(
            edge_s=np.zeros((1, 1, 1, 1, 1, len(sizes))),
            cloud_s=self.times.ids_s(id_frames(num_ids)),
            frame_bytes=sizes.reshape(1, 1, 1, 1, 1, -1),
        )
        if num_ids == prompt:
            return ids
        rows = self.times.prompt(chunk, first=num_ids)
        edge_s = rows.edge_s.copy()
        edge_s[..., 0] += self.times.fill_s(chunk, num_ids)
        return PromptChunks(
            edge_s=_joined(ids.edge_s, edge_s),
            cloud_s=_joined(ids.cloud_s, rows.cloud_s),
            frame_bytes=_joined(ids.frame_bytes, rows.frame_bytes),
        )

    @property
    def _middle(self) -> int:
        """Tokens cached before the round in the middle of the answer."""
        return middle_position(self.problem.limits.prompt_tokens, self.problem.answer_tokens)


def _joined(first: Floats, second: Floats) -> Floats:
    """Along the last axis; the others broadcast."""
    shape = np.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    parts = [np.broadcast_to(part, (*shape, part.shape[-1])) for part in (first, second)]
    return np.concatenate(parts, axis=-1)


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
