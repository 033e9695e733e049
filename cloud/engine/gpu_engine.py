"""The engine on a GPU: paged attention, graphs for decode steps, tokens drawn on the device.

A decode step (few rows a session, each wanting logits) is one copy up, one graph, one copy down.
Prefill, and steps of mixed kinds, run the same kernels launch by launch. See
`cloud.engine.step_graphs` for which graph a step gets, and docs/concepts/scheduling.md for what is
promised of the numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from cloud.attention.packed_step import StepEntry
from cloud.attention.paged import PagedStep, paged_step
from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import BackModel
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.captured_states import NOTHING, CapturedStates
from cloud.engine.device_sampler import draw, drawn_rows
from cloud.engine.drawing import Drawn
from cloud.engine.fused_layer import PROBE_ROWS
from cloud.engine.gpu_layer import gpu_layer, product
from cloud.engine.gpu_stack import GpuStack
from cloud.engine.graph_recorder import CudaRecorder, Recorded, Recorder, StepMemory
from cloud.engine.launches import Answered, DoneLaunch
from cloud.engine.step_graphs import GraphKey, StepGraphs, graph_key, keys_up_to
from cloud.gpu.paged_rows import PagedRows
from cloud.kv.pool import KvLease, KvShape
from cloud.kv.tables import BlockTables

logger = logging.getLogger(__name__)

# An entry of more rows (a prefill) is not a decode step: its rows share their history's reading.
MAX_STEP_ROWS: Final = 16


class _Layout(NamedTuple):
    """A decode step: each row's slot, position and split; each entry's rows, and how its lease
    grows."""

    key: GraphKey
    meta: tuple[list[int], list[int], list[int]]
    spans: list[tuple[int, int]]
    growth: list[tuple[KvLease, int]]


class GpuEngine(BackEngine):
    """See the module's docstring. Not thread-safe: one thread owns it.

    recorder: records a step's launches; None: CUDA graphs. kv_dtype: what keys and values are kept
    in; None: the model's.
    """

    def __init__(
        self,
        model: BackModel,
        *,
        recorder: Recorder | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        self._kv_dtype: torch.dtype | None = None  # layers are tried with the model's type
        super().__init__(model)
        self._kv_dtype = kv_dtype
        self._tables = BlockTables(model.device)
        shape = super().kv_shape
        self._rotary.reach(PROBE_ROWS + 1)
        layers = [
            None if fused is None else gpu_layer(fused, shape, *self._rotary.table(index))
            for index, fused in enumerate(self._fused, start=self.first_layer)
        ]
        self._stack = GpuStack(layers, self.first_layer, self._rotary, self._run_plain)
        self._record_launches = recorder or CudaRecorder(model.device)
        self._graphs: StepGraphs[tuple[Recorded, StepMemory]] = StepGraphs(self._record)
        self._memories: dict[int, StepMemory] = {}
        self._arena = torch.empty(0)
        self._can_record = True
        logger.info("%d of %d layers run in the GPU's kernels", self.num_gpu_layers, len(layers))

    @property
    def num_gpu_layers(self) -> int:
        """How many layers run in the GPU's kernels; the others run in torch."""
        return self._stack.num_kernel_layers

    @property
    def num_graphs(self) -> int:
        """How many recordings there are."""
        return len(self._graphs)

    @property
    def kv_shape(self) -> KvShape:
        """What a token's keys and values cost."""
        shape = super().kv_shape
        if self._kv_dtype is None:
            return shape
        return replace(shape, dtype=self._kv_dtype)

    @torch.inference_mode()
    def warm_up(self, arena: Tensor, *, split: int, num_rows: int, max_tokens: int) -> None:
        """Record the graphs of sessions that enter at `split`: up to `num_rows` rows, `max_tokens`.

        Else each is recorded when a step first needs it, and that step waits for it.
        """
        self._arena = arena
        keys = keys_up_to(first_layer=split, num_rows=num_rows, max_tokens=max_tokens)
        # Room for all first: memory that grows later makes void what was recorded.
        self._tables.reserve(slots=num_rows, tokens=max_tokens)
        self._rotary.reach(min(keys[-1].max_tokens, self.max_positions))
        for key in keys:
            if self._can_record:
                self._recording(key)

    @torch.inference_mode()
    def launch(self, batch: Sequence[BatchEntry]) -> _GraphLaunch | DoneLaunch:
        """Start a step. See `cloud.engine.launches.LaunchingEngine`."""
        layout = self._layout(batch)
        found = None if layout is None else self._recording(layout.key)
        if layout is None or found is None:
            return DoneLaunch(self._at_once(batch))
        recorded, memory = found
        for lease, count in layout.growth:
            lease.length += count
        meta = memory.meta_numpy
        num_rows = layout.spans[-1][1]
        meta[0, num_rows:] = -1
        meta[:, :num_rows] = layout.meta
        torch.cat([entry.rows for entry in batch], out=memory.rows_host[:num_rows])
        memory.upload()
        recorded.replay()
        spans = layout.spans
        return self._collected(batch, spans, recorded, memory)

    def _collected(
        self,
        batch: Sequence[BatchEntry],
        spans: Sequence[tuple[int, int]],
        recorded: Recorded,
        memory: StepMemory,
    ) -> _GraphLaunch:
        rows = drawn_rows(
            [
                (begin, entry.drawing, end - begin)
                for entry, (begin, end) in zip(batch, spans, strict=True)
                if entry.drawing is not None and not entry.drawing.params.greedy
            ]
        )
        if rows:
            index = torch.tensor([row.row for row in rows], device=recorded.ids.device)
            drawn = draw(recorded.logits, rows)
            recorded.ids[index] = torch.where(recorded.ids[index] < 0, -1, drawn)
        memory.ids_host.copy_(recorded.ids, non_blocking=True)
        # The logits of the few that need them: copied now, since the next step overwrites them.
        logits = [
            None if entry.drawing is not None else recorded.logits[begin:end].to("cpu", copy=True)
            for entry, (begin, end) in zip(batch, spans, strict=True)
        ]
        done = None
        if recorded.ids.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
        return _GraphLaunch(batch, spans, memory.ids_host, logits, done)

    def _layout(self, batch: Sequence[BatchEntry]) -> _Layout | None:
        """A decode step's rows; None where `batch` is no decode step, or too large for a graph."""
        if not self._can_record:
            return None
        slot = self._tables.slot  # may grow the tables: before their version is read
        slots: list[int] = []
        positions: list[int] = []
        splits: list[int] = []
        spans = []
        growth = []
        begin = longest = 0
        for entry in batch:
            lease, count = entry.lease, entry.num_logits
            if len(entry.rows) != count or count > MAX_STEP_ROWS:
                return None
            if entry.below is not None or entry.watch is not None:
                return None
            length = lease.length
            spans.append((begin, begin + count))
            growth.append((lease, count))
            begin += count
            longest = max(longest, length + count)
            if count == 1:
                slots.append(slot(lease))
                positions.append(length)
                splits.append(lease.split)
            else:
                slots.extend([slot(lease)] * count)
                positions.extend(range(length, length + count))
                splits.extend([lease.split] * count)
        key = graph_key(first_layer=min(splits), num_rows=begin, max_tokens=longest)
        if key is None:
            return None
        self._arena = batch[0].lease.pool.arena
        return _Layout(key, (slots, positions, splits), spans, growth)

    def _recording(self, key: GraphKey) -> tuple[Recorded, StepMemory] | None:
        self._rotary.reach(min(key.max_tokens, self.max_positions))
        version = (self._tables.version, self._rotary.version, self._arena.data_ptr())
        try:
            return self._graphs.get(key, version)
        except RuntimeError as error:
            # Experts that are chosen on the host, say. The kernels run all the same.
            self._can_record = False
            logger.warning("decode steps run without CUDA graphs: %s", str(error).split("\n")[0])
            return None

    def _record(self, key: GraphKey) -> tuple[Recorded, StepMemory]:
        memory = self._memories.get(key.num_rows)
        if memory is None:
            memory = StepMemory(key.num_rows, self.hidden_size, self.model.device)
            self._memories[key.num_rows] = memory
        slots, positions, splits = memory.meta
        slots.fill_(-1)  # recording runs the step: without sessions
        tables = self._tables
        rows = PagedRows(self._arena, tables.base, tables.stride, slots, positions, splits)
        step = PagedStep(rows, rows, None, key.max_tokens)
        counts = [key.num_rows] * (self.num_layers - key.first_layer)

        def run() -> tuple[Tensor, Tensor]:
            hidden = memory.rows.to(self.model.dtype)
            hidden = hidden.clone() if hidden is memory.rows else hidden
            self._stack.run(hidden, step, counts, key.first_layer)
            logits = self.logits(hidden)
            top, ids = logits.max(dim=1)
            size = torch.linalg.vector_norm(hidden, dim=1, dtype=torch.float32)
            return logits, torch.where(size.isfinite() & top.isfinite(), ids, -1)

        return self._record_launches(run), memory

    def _at_once(self, batch: Sequence[BatchEntry]) -> list[Answered]:
        """A step without a graph."""
        logits = self.forward(batch)
        drawings = [
            (index, entry) for index, entry in enumerate(batch) if entry.drawing is not None
        ]
        answers: list[Any] = [None] * len(batch)
        spans, begin = [], 0
        for index, _ in drawings:
            spans.append((begin, begin + len(logits[index])))
            begin = spans[-1][1]
        if begin:
            joined = torch.cat([logits[index] for index, _ in drawings])
            ids = joined.argmax(dim=1)
            finite = joined.isfinite().all(dim=1)
            rows = drawn_rows(
                [
                    (first, entry.drawing, stop - first)
                    for (_, entry), (first, stop) in zip(drawings, spans, strict=True)
                ]
            )
            if rows:
                index_of = torch.tensor([row.row for row in rows], device=ids.device)
                ids[index_of] = draw(joined, rows)
            host = torch.where(finite, ids, -1).cpu().tolist()
        for (index, _), (first, stop) in zip(drawings, spans, strict=True):
            answers[index] = _drawn(host[first:stop] if begin else [])
        return [
            logits[index].cpu().numpy() if answer is None else answer
            for index, answer in enumerate(answers)
        ]

    def _head(self, normed: Tensor) -> Tensor:
        return product(self.model.head, normed)

    def _run(
        self,
        entries: Sequence[StepEntry],
        rows: Sequence[Tensor],
        positions: Sequence[int],
        stop: int,
        captured: CapturedStates = NOTHING,
    ) -> Tensor:
        """See BackEngine. Nothing is captured here."""
        self._rotary.reach(max(positions, default=0) + 1)
        arena = entries[0].lease.pool.arena
        config = self.model.config
        group = config.num_attention_heads // config.num_key_value_heads
        step = paged_step(entries, self._tables, arena, group=group)
        hidden = torch.cat(list(rows))
        first = entries[0].lease.split
        counts = []
        joined = 0
        for layer in range(first, stop):
            while joined < len(entries) and entries[joined].lease.split <= layer:
                joined += 1
            counts.append(entries[joined - 1].end)
        self._stack.run(hidden, step, counts, first)
        for entry in entries:
            entry.lease.length = entry.start + entry.num_rows
        return hidden


class _GraphLaunch:
    """A graph that runs. logits: float32 [num_logits, V] here, of entries without a drawing."""

    is_done = False

    def __init__(
        self,
        batch: Sequence[BatchEntry],
        spans: Sequence[tuple[int, int]],
        ids: Tensor,
        logits: Sequence[Tensor | None],
        done: torch.cuda.Event | None,
    ) -> None:
        self._batch = batch
        self._spans = spans
        self._ids = ids
        self._logits = logits
        self._done = done

    def result(self) -> list[Answered]:
        """See Launch."""
        if self._done is not None:
            self._done.synchronize()
        ids = self._ids[: self._spans[-1][1]].tolist()
        if min(ids) < 0:
            for entry, (begin, end) in zip(self._batch, self._spans, strict=True):
                entry.lease.overflowed |= min(ids[begin:end]) < 0
        return [
            _drawn(ids[begin:end]) if logits is None else logits.numpy()
            for (begin, end), logits in zip(self._spans, self._logits, strict=True)
        ]


def _drawn(ids: Sequence[int]) -> Drawn:
    if len(ids) == 1:
        return Drawn((ids[0],), ids[0] >= 0)
    return Drawn(tuple(ids), min(ids, default=0) >= 0)
