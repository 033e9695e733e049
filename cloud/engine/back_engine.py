"""The back of the model over a packed batch in which sessions enter at different layers.

A batch's rows are ordered by split. The rows that are active at a layer are therefore the first
ones of the packed matrix, and rows that join are appended. Every layer runs once, on the rows of
all sessions that have reached it.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor

from cloud.attention.base import Attend
from cloud.attention.packed_step import PackedStep, StepEntry
from cloud.attention.registry import backend_for
from cloud.attention.squeezed import SqueezedAttention
from cloud.attention.squeezed_step import SqueezedStep
from cloud.attention.transformers_interface import attending
from cloud.engine.back_weights import BackModel
from cloud.engine.batch_entry import BatchEntry, logit_rows, show_logits, step_entries
from cloud.engine.captured_states import NOTHING, CapturedStates
from cloud.engine.fused_layer import PROBE_ROWS, FusedLayer, fuse, probe_step, sign_sine
from cloud.engine.int8_linear import Int8Linear
from cloud.engine.native_stack import NativeStack, suits
from cloud.engine.rotary import RotaryTables
from cloud.engine.row_checks import mark_overflow
from cloud.kernel import library as native
from cloud.kv.pool import KvLease, KvShape
from optimizer.families import position_limit

logger = logging.getLogger(__name__)

# By type of layer: cosine, sine and signed sine of the rows' positions, [T, r] each.
_Rotary: TypeAlias = dict[str, tuple[Tensor, Tensor, Tensor]]

# The kernel and torch multiply the same integers, but float32 noise may round a digit differently.
_MAX_STACK_ERROR: Final = 2e-3  # relative


class BackEngine:
    """Runs packed batches. Not thread-safe: one thread owns it."""

    def __init__(
        self, model: BackModel, *, fused: bool = True, attention: str | None = None
    ) -> None:
        """fused: use `FusedLayer` and the compiled kernel for the layers that suit them.

        attention: a backend's name (`cloud.attention.registry`; None: the device's default) for
        the layers that torch runs. Raises ValueError for one that is not there.
        """
        self.model = model
        self._attention = backend_for(model.device, attention)
        self._rotary = RotaryTables(model.rotary, model.config, model.dtype)
        self._fused = self._fuse_layers() if fused else [None] * len(model.layers)
        self._native = self._pack() if fused else None
        self._captured_layers: tuple[int, ...] = ()

    def capture(self, layers: Sequence[int]) -> None:
        """From now on, `BatchEntry.tap` is told the states at these layers (`CapturedStates`)."""
        self._captured_layers = tuple(layers)

    @property
    def num_fused_layers(self) -> int:
        """How many layers `FusedLayer` runs; the others run transformers' code as it is."""
        return sum(layer is not None for layer in self._fused)

    @property
    def is_native(self) -> bool:
        """Whether whole steps run in the compiled kernel."""
        return self._native is not None

    @property
    def squeezable_layers(self) -> dict[int, float]:
        """The layers that can select keys (`cloud.squeezed`), with the factor on their scores."""
        if self.model.device.type != "cpu" or self.kv_shape.dtype != torch.float32:
            return {}
        known = [layer for layer in self._fused if layer is not None]
        return {layer.index: layer.traits.scale for layer in known if layer.traits.is_plain}

    @property
    def first_layer(self) -> int:
        """The lowest layer whose weights are here."""
        return self.model.first_layer

    @property
    def num_layers(self) -> int:
        """L, counting the layers that are not here."""
        return self.model.num_layers

    @property
    def hidden_size(self) -> int:
        """D, the width of the residual stream."""
        return int(self.model.config.hidden_size)

    @property
    def max_positions(self) -> int:
        """Longest sequence that a session may have."""
        return position_limit(self.model.config)

    @property
    def kv_shape(self) -> KvShape:
        """What a token's keys and values cost, for a pool that fits this model."""
        return self.model.kv_shape

    @torch.inference_mode()
    def forward(self, batch: Sequence[BatchEntry]) -> list[Tensor]:
        """Run one batch; every lease grows by its entry's rows.

        Returns float32 logits [num_logits, V] of each entry, in the order of `batch`. A session
        may appear once. Rows before the last `num_logits` only fill the KV cache. A row that
        leaves float32's range marks its lease `overflowed` and changes no other session's numbers.
        """
        order, entries = step_entries(batch)
        positions = [
            place + entry.lease.num_left
            for entry in entries
            for place in range(entry.start, entry.stop)
        ]
        rows = [self._entering(batch[index]) for index in order]
        is_tapped = any(entry.tap is not None for entry in batch)
        captured = CapturedStates(self._captured_layers if is_tapped else ())
        hidden = self._run(entries, rows, positions, self.num_layers, captured)
        captured.tell(entries, [batch[index] for index in order])
        size = torch.linalg.vector_norm(hidden, dtype=torch.float32)
        logits = self._logits(hidden, batch, order, entries)
        for index, entry in zip(order, entries, strict=True):
            show_logits(batch[index], hidden[entry.begin : entry.end], self.logits)
        if not math.isfinite(size):
            mark_overflow(hidden, entries)
        return logits

    @torch.inference_mode()
    def hidden(self, lease: KvLease, rows: Tensor) -> Tensor:
        """What the last layer gives of rows [T, D] that enter at the lease's split, which grows."""
        count = rows.shape[0]
        alone = StepEntry(lease, start=lease.length, begin=0, num_rows=count)
        entering = [rows.to(self.model.device, self.model.dtype)]
        return self._run([alone], entering, range(alone.start, alone.stop), self.num_layers)

    def _entering(self, entry: BatchEntry) -> Tensor:
        """An entry's rows as they enter its split, [T, D]."""
        rows = entry.rows.to(self.model.device, self.model.dtype)
        below = entry.below
        if below is None:
            return rows
        num_rows = rows.shape[0]
        alone = StepEntry(below, start=below.length, begin=0, num_rows=num_rows)
        return self._run([alone], [rows], range(alone.start, alone.stop), below.stop)

    def _run(
        self,
        entries: Sequence[StepEntry],
        rows: Sequence[Tensor],
        positions: Sequence[int],
        stop: int,
        captured: CapturedStates = NOTHING,
    ) -> Tensor:
        """Layers up to `stop` on each entry's rows; every lease grows. Returns [sum T, D]."""
        step = PackedStep(entries)
        rotary = self._rotary_of(positions)
        squeezed = SqueezedStep.of(entries)
        if self._native is None:
            hidden = self._run_layers(step, rows, rotary, stop, captured, squeezed)
        else:
            hidden = self._run_native(self._native, step, rows, rotary, stop, captured, squeezed)
        captured.take(stop, hidden)
        if squeezed is not None:
            squeezed.finish()
        for entry in entries:
            entry.lease.length = entry.start + entry.num_rows
        return hidden

    def _rotary_of(self, positions: Sequence[int]) -> _Rotary:
        rows = self._rotary.rows(
            torch.tensor(positions, device=self.model.device), max(positions, default=0) + 1
        )
        return {kind: (cos, sin, sign_sine(sin)) for kind, (cos, sin) in rows.items()}

    def _run_layers(
        self,
        step: PackedStep,
        rows: Sequence[Tensor],
        rotary: _Rotary,
        stop: int,
        captured: CapturedStates,
        squeezed: SqueezedStep | None = None,
    ) -> Tensor:
        """Layers up to `stop`, in torch. rows: each entry's, [T, D]; returns all, [sum T, D]."""
        entries = step.entries
        attention = self._attention(step)
        if squeezed is not None:
            attention = SqueezedAttention(step, squeezed, range(entries[0].lease.split, stop))
        attend = attention.over(())
        hidden = rows[0][:0]
        joined = 0
        for layer in range(entries[0].lease.split, stop + 1):
            first = joined
            while joined < len(entries) and entries[joined].lease.split == layer:
                joined += 1
            if joined > first:
                hidden = torch.cat([hidden, *rows[first:joined]])
                attend = attention.over(entries[:joined])
            if layer < stop:
                captured.take(layer, hidden)
                cos, sin, signed = rotary[self._rotary.type_of_layer[layer]]
                num_rows = hidden.shape[0]
                fused = self._fused[layer - self.first_layer]
                if fused is not None:
                    hidden = fused(hidden, cos[:num_rows, None], signed[:num_rows, None], attend)
                else:
                    hidden = self._run_plain(layer, hidden, cos[:num_rows], sin[:num_rows], attend)
        return hidden

    def _run_native(
        self,
        stack: NativeStack,
        step: PackedStep,
        rows: Sequence[Tensor],
        rotary: _Rotary,
        stop: int,
        captured: CapturedStates,
        squeezed: SqueezedStep | None = None,
    ) -> Tensor:
        """The same in the compiled kernel, which works on all rows in place."""
        hidden = torch.cat(list(rows))
        cos, _, signed = rotary[self._rotary.type_of_layer[0]]
        native_step = stack.begin(step, hidden, cos, signed, squeezed)
        # How many rows are active when a layer begins; it changes where sessions join.
        joins = {entry.lease.split: entry.end for entry in step.entries}
        starts = sorted(
            {layer for layer in joins if layer < stop} | captured.cuts(min(joins), stop)
        )
        active = 0
        for begin, end in zip(starts, [*starts[1:], stop], strict=False):
            active = joins.get(begin, active)
            captured.take(begin, hidden[:active])
            stack.run(native_step, range(begin, end), active)
        if squeezed is not None:
            stack.count(squeezed)
        return hidden

    def _pack(self) -> NativeStack | None:
        """Give 8-bit weights to the compiled kernel. Returns whole layers where all suit it.

        None also where the kernel's layers give other numbers than torch's on random rows.
        """
        kernel = native.load() if self.model.device.type == "cpu" else None
        if kernel is None:
            if self.model.device.type == "cpu" and any(map(suits, filter(None, self._fused))):
                logger.warning("torch runs the 8-bit layers, slower: %s", native.why_torch_runs())
            return None
        layers = [layer for layer in self._fused if layer is not None and suits(layer)]
        whole = len(layers) == len(self._fused) > 0
        # The same rows in every process: replicas of a model must all decide alike.
        always = torch.Generator().manual_seed(0)
        rows = [torch.randn(PROBE_ROWS, self.hidden_size, generator=always)]
        rotary = self._rotary_of(range(PROBE_ROWS))
        with torch.inference_mode():
            expected = rows[0]
            if whole:
                expected = self._run_layers(
                    self._probe_step(), rows, rotary, self.num_layers, NOTHING
                )
            for layer in self._fused:
                if layer is not None:
                    layer.pack()
            for module in (
                m for part in (*self.model.layers, self.model.head) for m in part.modules()
            ):
                if isinstance(module, Int8Linear):
                    module.pack()
            if not whole:
                return None
            stack = NativeStack(kernel, layers, self.first_layer)
            step = self._probe_step()
            got = self._run_native(stack, step, rows, rotary, self.num_layers, NOTHING)
        error = float((got - expected).norm() / expected.norm())
        if not error < _MAX_STACK_ERROR:
            logger.warning("the compiled layers differ by %.1e, so torch runs them", error)
            return None
        logger.info("%d layers run in the compiled kernel (%s)", len(layers), kernel.name)
        return stack

    def _probe_step(self) -> PackedStep:
        return probe_step(self.kv_shape, self.first_layer, self.model.device)

    def _fuse_layers(self) -> list[FusedLayer | None]:
        first_rows = self._rotary.rows(torch.arange(8, device=self.model.device), 8)
        fused = []
        for offset, layer in enumerate(self.model.layers):
            index = self.first_layer + offset
            cos, sin = first_rows[self._rotary.type_of_layer[index]]
            run = functools.partial(self._run_plain, index)
            fused.append(fuse(layer, run, self.kv_shape, cos, sin))
        return fused

    def _run_plain(
        self, layer: int, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend
    ) -> Tensor:
        """transformers' own layer. hidden: [T, D]; cos, sin: [T, r]."""
        with attending(attend):
            out = self.model.layers[layer - self.first_layer](
                hidden[None],
                attention_mask=None,
                position_embeddings=(cos[None], sin[None]),
                attend=attend,
            )
        # Layers return the tensor, or in older versions a tuple that begins with it.
        rows: Tensor = (out[0] if isinstance(out, tuple) else out)[0]
        return rows

    def _logits(
        self,
        hidden: Tensor,
        batch: Sequence[BatchEntry],
        order: Sequence[int],
        entries: Sequence[StepEntry],
    ) -> list[Tensor]:
        """Norm and head of the rows that need them, [num_logits, V] each, in the batch's order."""
        wanted, spans = logit_rows(batch, order, entries)
        if wanted:
            if len(wanted) < hidden.shape[0]:
                hidden = hidden[torch.tensor(wanted, device=hidden.device)]
            logits = self.logits(hidden)
        else:
            logits = torch.empty((0, self.model.config.vocab_size), device=hidden.device)
        return [logits[begin:end] for begin, end in spans]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Norm and head: float32 logits [T, V] of rows [T, D] that the last layer gave."""
        return self.head_logits(self.model.norm(hidden))

    def head_logits(self, normed: Tensor) -> Tensor:
        """The head alone: float32 logits [T, V] of normed rows [T, D]."""
        logits = self._head(normed).float()
        if divisor := self.model.logits_divisor:
            logits = logits.div_(divisor)
        if cap := self.model.final_softcap:
            logits = logits.div_(cap).tanh_().mul_(cap)
        return logits

    def _head(self, normed: Tensor) -> Tensor:
        return self.model.head(normed)  # type: ignore[no-any-return]
