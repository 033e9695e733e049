"""One segment of a front with the cache of one sequence: past and present share one buffer.

A step binds the inputs and two integers; weights and cache stay bound, the cache where the kernels
run that fill it. It is allocated for the longest sequence, so rolling back changes one number,
which the engine keeps. Rows come back to this side's memory.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge.device.cache_buffer import CacheBuffer, cache_buffer
from edge.device.front_graphs import FrontGraph
from edge.device.front_kv import key_places
from edge.errors import FrontError
from optimizer.artifacts.bundle import KEY_CHANNELS, POSITIONS_INPUT
from optimizer.artifacts.plan import Plan

KV_DTYPES: Final[dict[int, Any]] = {8: np.int8, 16: np.float16, 32: np.float32}


class SegmentRunner:
    """See the module's docstring. capacity: tokens that the cache holds at first."""

    def __init__(self, graph: FrontGraph, plan: Plan, *, capacity: int) -> None:
        self.graph = graph
        geometry = plan.model.geometry
        self._is_last = graph.layers.stop == geometry.num_layers
        self._width = geometry.vocab_size if self._is_last else geometry.hidden_size
        self._dtype = KV_DTYPES[plan.kv_bits]
        self._heads = (1, geometry.num_kv_heads, geometry.device_head_dim)
        self._input = "rows" if graph.layers.start else "input_ids"
        self._output = graph.session.get_outputs()[0].name
        self._binding = graph.session.io_binding()
        self._cache: dict[str, CacheBuffer] = {}  # by input
        facts = graph.session.get_modelmeta().custom_metadata_map
        # Where the channels of a cached key lie; None: not known, or rounded to 8 bits.
        self.key_places = (
            key_places(
                facts.get(KEY_CHANNELS, ""),
                head_dim=geometry.head_dim,
                size=geometry.device_head_dim,
            )
            if plan.kv_bits > 8
            else None
        )
        self._takes_positions = any(
            each.name == POSITIONS_INPUT for each in graph.session.get_inputs()
        )
        for each in graph.session.get_inputs():
            if each.name.startswith("past_key_values."):
                self._bind(each.name, self._empty(capacity))

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache takes."""
        return sum(buffer.nbytes for buffer in self._cache.values())

    def buffers(self, layer: int) -> tuple[CacheBuffer, CacheBuffer]:
        """A layer's cached keys and values: the memory itself."""
        name = f"past_key_values.{layer}"
        return self._cache[f"{name}.key"], self._cache[f"{name}.value"]

    def keep_slots(self, slots: npt.NDArray[np.int64], first: int) -> None:
        """Of the cache's rows from `first` on keep those of these rising slots, side by side."""
        for buffer in self._cache.values():
            buffer.move_rows(slots, first)

    def first_broken(self, layer: int, num_tokens: int) -> int | None:
        """The first position whose cached key or value at `layer` is NaN or infinite; None: none
        of the first num_tokens, or the cache holds integers, or the segment has none."""
        if not self._cache or self._dtype == np.int8:
            return None
        found = []
        for buffer in self.buffers(layer):
            is_finite = np.isfinite(buffer.first(num_tokens)).all(axis=(0, 1, 3))
            if not is_finite.all():
                found.append(int(is_finite.argmin()))
        return min(found, default=None)

    def run(
        self, values: npt.NDArray[Any], total: int, num_left: int = 0
    ) -> npt.NDArray[np.float32]:
        """Append rows; returns what leaves the segment, float32 [T, D], or logits [1, V].

        values: token ids int64 [T] of the first segment, rows float32 [T, D] of any other. total:
        tokens in the cache afterwards, at most its capacity. num_left: tokens that have left the
        cache, so each row's position is so far beyond its place; 0 where the graph does not take
        positions. FrontError when a kernel fails.
        """
        # Named, so that the memory that is bound lives until the kernels have run.
        inputs: dict[str, npt.NDArray[Any]] = {self._input: values[None]}
        if self._cache:
            inputs["seqlens_k"] = np.array([total - 1], dtype=np.int32)
            inputs["total_sequence_length"] = np.array(total, dtype=np.int32)
        if self._takes_positions:
            end = total + num_left
            inputs[POSITIONS_INPUT] = np.arange(end - len(values), end, dtype=np.int64)[None]
        for name, value in inputs.items():
            self._binding.bind_cpu_input(name, value)
        out_rows = 1 if self._is_last else len(values)
        rows: npt.NDArray[np.float32] = np.empty((1, out_rows, self._width), dtype=np.float32)
        self._binding.bind_output(self._output, "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
        try:
            self.graph.session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime raises many kinds, none of them exported
            raise FrontError(f"the front's kernels failed ({error})") from error
        appended: npt.NDArray[np.float32] = rows[0]
        return appended

    def resize(self, capacity: int, num_tokens: int) -> None:
        """Give the cache room for `capacity` tokens and keep its first `num_tokens`.

        One buffer after the other, so that hardly more than both sizes' larger one is held.
        """
        for name in list(self._cache):
            buffer = self._cache[name]
            if buffer.capacity != capacity:
                wider = self._empty(capacity)
                wider[:, :, :num_tokens] = buffer.first(num_tokens)
                self._bind(name, wider)

    def _empty(self, capacity: int) -> npt.NDArray[Any]:
        batch, heads, size = self._heads
        return np.zeros((batch, heads, capacity, size), dtype=self._dtype)

    def _bind(self, name: str, values: npt.NDArray[Any]) -> None:
        """Make `values` a layer's keys or values, as past and as present, where its node runs."""
        buffer = self._cache[name] = cache_buffer(values, self.graph.cache_device)
        self._binding.bind_ortvalue_input(name, buffer.value)
        self._binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer.value)
