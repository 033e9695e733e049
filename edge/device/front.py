"""The front on the device: the embedding and the first layers, with one sequence's cache.

It runs one segment after the other (`edge.device.front_segment`). Where the plan's split may move,
`move_to` loads or drops segments and their cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge.device.front_graphs import FrontGraphs
from edge.device.front_kv import CachedLayers
from edge.device.front_segment import SegmentRunner
from edge.device.mapped_pages import unmapping
from edge.errors import FrontError, InputError
from hwprofiles.heap import trim_heap
from hwprofiles.providers.sessions import NodePlacement
from hwprofiles.providers.table import CPU, ExecutionProvider
from optimizer.artifacts.plan import Plan
from optimizer.cost.memory import RELEASE_ROWS

NO_POSITIONS: Final = (
    "tokens cannot leave this front's cache and the others keep their positions: build the bundle "
    "again with --positions"
)


class FrontEngine:
    """The embedding and the first layers of one model, with the cache of one sequence.

    One generation at a time; engines that share graphs may run in different threads. It begins at
    the plan's split.
    """

    def __init__(self, graphs: FrontGraphs, plan: Plan) -> None:
        self._graphs = graphs
        self._plan = plan
        self._vocab_size = plan.model.geometry.vocab_size
        self._token_ids: list[int] = []  # of the rows in the cache
        self._steps: list[int] = []  # rows that were computed together; below 0: a part of a step
        self._num_left = 0  # tokens that left the cache; those behind them keep their positions
        self._floor = 0  # tokens that were in the cache when the last ones left
        self._rows_mapped = 0  # since pages of files were last given back
        self._split = plan.partition.split
        self._segments: list[SegmentRunner] = []
        self._load_segments(self._split)

    @classmethod
    def load(
        cls,
        edge_dir: Path,
        *,
        plan: Plan,
        count: int = 1,
        threads: int | None = None,
        spinning: bool = False,
        low_memory: bool = False,
        mapped: tuple[Path, ...] = (),
        provider: ExecutionProvider = CPU,
        halves: bool = False,
        streamed_layers: int | None = None,
        forget: bool = False,
    ) -> list[FrontEngine]:
        """Load the front once, for `count` engines that share weights and have own caches.

        The options are those of `FrontGraphs`. FrontError when a file is not a front.
        """
        graphs = FrontGraphs(
            edge_dir,
            plan=plan,
            threads=threads,
            spinning=spinning,
            low_memory=low_memory,
            mapped=mapped,
            provider=provider,
            halves=halves,
            streamed_layers=streamed_layers,
            forget=forget,
        )
        return [cls(graphs, plan) for _ in range(count)]

    def sibling(self) -> FrontEngine:
        """Another engine with the same weights and an empty cache of its own."""
        return FrontEngine(self._graphs, self._plan)

    @property
    def split(self) -> int:
        """The layers that it runs: [0, split)."""
        return self._split

    @property
    def num_threads(self) -> int:
        """Threads of its kernels."""
        return self._graphs.num_threads

    @property
    def num_tokens(self) -> int:
        """Tokens in the cache."""
        return len(self._token_ids)

    @property
    def capacity(self) -> int:
        """Tokens that the cache holds at this split."""
        return self._room(self._split)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the preallocated cache."""
        return sum(segment.cache_bytes for segment in self._segments)

    @property
    def streamed_layers(self) -> int:
        """How many of its layers are read from storage in every pass."""
        return sum(segment.graph.is_streamed for segment in self._segments)

    @property
    def streamed_bytes(self) -> int:
        """Bytes that a pass reads from storage; exact after the first one."""
        return self._graphs.streamed_bytes

    @property
    def placements(self) -> tuple[NodePlacement, ...]:
        """Who runs the nodes of each segment that is loaded."""
        return tuple(segment.graph.placement for segment in self._segments)

    def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Append [T] tokens; returns their residual-stream rows, float32 [T, D].

        When the plan puts the whole model here: the logits after the last token, [1, V].
        InputError for an unknown token or when the cache holds no more; FrontError when a kernel
        fails, or makes NaN or infinity. The cache stays as it was then.
        """
        num_rows = len(token_ids)
        total = self.num_tokens + num_rows
        if not num_rows or token_ids.min() < 0 or token_ids.max() >= self._vocab_size:
            raise InputError(f"token ids must lie between 0 and {self._vocab_size - 1}")
        if total > self.capacity:
            raise InputError(f"{total} tokens exceed the plan's {self.capacity}")
        if self._num_left and total + self._num_left > self._plan.max_positions:
            raise InputError(
                f"{total + self._num_left} positions exceed the plan's {self._plan.max_positions}"
            )
        if not self._segments:
            raise InputError("this front has moved to split 0, where it runs nothing")
        values: npt.NDArray[Any] = token_ids
        with self._graphs.one_pass():
            for segment in self._segments:
                with self._graphs.in_memory(segment.graph):
                    rows = values = segment.run(values, total, self._num_left)
        if not np.isfinite(rows).all():
            raise FrontError(self._broken(rows, token_ids))
        self._token_ids += token_ids.tolist()
        self._steps.append(num_rows)
        self._release_pages(num_rows)
        return rows

    def rollback(self, num_tokens: int) -> None:
        """Forget every token from `num_tokens` on; what was cached for them is overwritten."""
        if not 0 <= num_tokens <= self.num_tokens:
            raise InputError(f"cannot roll back to {num_tokens} of {self.num_tokens} tokens")
        if not num_tokens:
            self.reset()
            return
        if num_tokens < self._floor:
            raise InputError(
                f"cannot roll back to {num_tokens} tokens: others left behind {self._floor}"
            )
        left = self.num_tokens - num_tokens
        while left > 0:
            num_rows = abs(self._steps.pop())
            if num_rows > left:
                self._steps.append(left - num_rows)
            left -= num_rows
        del self._token_ids[num_tokens:]

    def keep_slots(self, slots: Sequence[int]) -> None:
        """Let all tokens leave the cache but those in these rising places.

        Those that stay move together and keep their positions; later tokens get the positions that
        they would have had. `rollback` goes no further back than here, except to 0. InputError for
        places that there are not, and where the front was built without positions of their own.
        """
        if not self._plan.max_positions:
            raise InputError(NO_POSITIONS)
        kept = np.asarray(slots, dtype=np.int64)
        if len(kept) and (kept[0] < 0 or kept[-1] >= self.num_tokens or (np.diff(kept) < 1).any()):
            raise InputError(f"places to keep must rise, below {self.num_tokens}")
        same = int((kept == np.arange(len(kept))).sum())
        for segment in self._segments:
            segment.keep_slots(kept[same:], same)
        self._num_left += self.num_tokens - len(kept)
        self._token_ids = [self._token_ids[slot] for slot in slots]
        self._steps = [len(kept)] if len(kept) else []
        self._floor = len(kept)

    def keep_steps(self, steps: Sequence[Sequence[int]]) -> None:
        """Forget all but the first of these `steps` whose tokens were computed just so.

        Kernels may round a row differently among other rows, so the same tokens in other steps do
        not count. What is kept has the bits that it would have if it were computed again.
        """
        kept = 0
        if self._num_left:  # what stayed was computed among tokens that are not there any more
            self.reset()
        for num_rows, token_ids in zip(self._steps, steps, strict=False):
            if self._token_ids[kept : kept + num_rows] != list(token_ids):
                break
            kept += num_rows
        self.rollback(kept)

    def keep(self, token_ids: Sequence[int]) -> None:
        """Forget all but the longest beginning of the cache that `token_ids` begins with too."""
        if self._num_left:
            self.reset()
        pairs = enumerate(zip(self._token_ids, token_ids, strict=False))
        same = min(self.num_tokens, len(token_ids))
        self.rollback(next((index for index, (one, other) in pairs if one != other), same))

    def reset(self) -> None:
        """Forget everything: the next tokens begin a sequence."""
        self._token_ids.clear()
        self._steps.clear()
        self._num_left = self._floor = 0

    def cached_from(self, split: int) -> CachedLayers | None:
        """What is cached of the layers from `split` on, which stays readable when they are dropped.

        None where nothing is, and where the cache does not hold the model's own numbers: at 8 bits,
        or in a front of an older build, which does not say how its keys lie.
        """
        segments = [segment for segment in self._segments if segment.graph.layers.start >= split]
        places = segments[0].key_places if segments else None
        if self._num_left:  # the server would not know their positions
            return None
        if places is None or segments[0].graph.layers.start != split:
            return None
        layers = range(split, self._split)
        return CachedLayers(
            layers,
            [segment.buffers(layer) for segment in segments for layer in segment.graph.layers],
            num_heads=self._plan.model.geometry.num_kv_heads,
            places=places,
            head_dim=self._plan.model.geometry.head_dim,
        )

    def move_to(self, split: int) -> None:
        """Run the layers [0, split) from now on: one of the plan's splits, or none at 0.

        Towards 0, segments and their cache are freed, and the tokens stay. Towards the last layer,
        segments are loaded and the cache is empty: the new layers have seen no token. InputError
        for a split that the front is not cut at; FrontError for a segment that cannot be loaded:
        the front stays as it was.
        """
        if split == self._split:
            return
        if split not in (0, *self._plan.splits):
            known = ", ".join(map(str, self._plan.splits))
            raise InputError(f"no split {split}: this front runs 0, {known}")
        if split > self._split:
            self._load_segments(split)
            self.reset()
        else:
            kept = self._plan.splits.index(split) + 1 if split else 0
            with unmapping:
                del self._segments[kept:]
            if not kept:
                self.reset()
        self._split = split
        for segment in self._segments:
            segment.resize(self.capacity, self.num_tokens)
        trim_heap()  # what was freed goes back to the system

    def _broken(self, rows: npt.NDArray[np.float32], token_ids: npt.NDArray[np.int64]) -> str:
        """Which token and layer made NaN or infinity, as far as the cache shows it.

        rows: what left the front for these tokens, the last ones of the cache to be.
        """
        bad = int(np.argmin(np.isfinite(rows).all(axis=1))) + len(token_ids) - len(rows)
        where = f"token {token_ids[bad]} at position {self.num_tokens + bad}"
        total = self.num_tokens + len(token_ids)
        for segment in self._segments:
            for layer in segment.graph.layers:
                position = segment.first_broken(layer, total)
                if position is not None:
                    return (
                        f"the front computed NaN or infinity for {where}; the first are in the "
                        f"keys or values of layer {layer}, at position {position}"
                    )
        return (
            f"the front computed NaN or infinity for {where}, behind the keys and values of layer "
            f"{self._split - 1}, which are finite as far as they are floats"
        )

    def _load_segments(self, split: int) -> None:
        """Load what is missing for the layers [0, split): all of it or nothing."""
        segments = list(self._segments)
        for index in range(len(segments), self._plan.segment_ends.index(split) + 1):
            graph = self._graphs.graph(index)
            segments.append(SegmentRunner(graph, self._plan, capacity=self._room(split)))
        self._segments = segments

    def _room(self, split: int) -> int:
        """Tokens that the cache of `split` holds. An embedding alone has none to fill."""
        return self._plan.capacity(split) if split else self._plan.max_tokens

    def _release_pages(self, num_rows: int) -> None:
        self._rows_mapped += num_rows
        if self._rows_mapped >= RELEASE_ROWS:
            for segment in self._segments:
                segment.graph.release_pages()
            self._rows_mapped = 0
