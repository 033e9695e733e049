"""All layers of a back in the compiled kernel: one call for as many layers as run together.

For models whose every layer has the Llama shape and 8-bit weights, on a CPU (`suits`). The engine
makes a stack only where it gives the numbers of torch's layers (`BackEngine._pack`). What a step
needs (places in the arena, what each row sees) is laid out once for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cloud.attention.native import row_histories, suits_heads
from cloud.attention.packed_step import PackedStep
from cloud.attention.squeezed_step import SqueezedStep
from cloud.engine.fused_layer import FusedLayer
from cloud.engine.int8_linear import Int8Linear
from cloud.engine.native_squeeze import NativeSqueeze, count_read, native_squeeze
from cloud.kernel.library import (
    MAX_GROUP,
    MAX_THREADS,
    CLayer,
    CLinear,
    CStep,
    NativeKernel,
    layer_array,
)


class NativeStack:
    """`layers[i]` is layer `first_layer + i`; they hold the weights that the kernel reads."""

    def __init__(
        self, kernel: NativeKernel, layers: Sequence[FusedLayer], first_layer: int
    ) -> None:
        self._kernel = kernel
        self._first_layer = first_layer
        self._held = [_LayerStruct(layer) for layer in layers]
        self._layers = layer_array([held.struct for held in self._held])
        one = layers[0]
        self._heads, self._kv_heads, self._head_dim = one.num_heads, one.num_kv_heads, one.head_dim
        self._inner = self._held[0].inner
        self._width = self._held[0].width
        self._buffers: dict[str, Tensor] = {}
        self._squeeze = NativeSqueeze()  # of the step that runs

    def begin(
        self,
        step: PackedStep,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        squeezed: SqueezedStep | None = None,
    ) -> CStep:
        """A step as the kernel reads it. hidden: [T, D] float32; cos, signed sin: [T, r].

        `run` changes `hidden` in place; the structure returned holds no reference to it.
        """
        num_rows = hidden.shape[0]
        self._kernel.set_threads(torch.get_num_threads())
        qkv_width = (self._heads + 2 * self._kv_heads) * self._head_dim
        mixed_width = max(self._width, self._heads * self._head_dim, self._inner)
        histories = row_histories(step.entries)
        self._squeeze = NativeSqueeze()
        if squeezed is not None:
            layers = range(step.entries[0].lease.split, self._first_layer + len(self._held))
            heads = (self._heads, self._kv_heads, self._head_dim)
            self._squeeze = native_squeeze(squeezed, histories, layers, heads)
        history = histories.longest + self._squeeze.num_clusters
        buffers = {
            "cos": cos.contiguous(),
            "sin": sin.contiguous(),
            "pieces": histories.pieces,
            "first_piece": histories.first_piece,
            "wide": self._scratch("wide", num_rows * max(qkv_width, 2 * self._inner)),
            "mixed": self._scratch("mixed", num_rows * mixed_width),
            "digits": self._scratch("digits", 2 * num_rows * (mixed_width + 3), torch.int8),
            "row_scale": self._scratch("row_scale", num_rows),
            "row_sum": self._scratch("row_sum", 2 * num_rows, torch.int32),
            "scores": self._scratch("scores", MAX_THREADS * MAX_GROUP * history),
        }
        self._buffers |= buffers  # alive until the next step
        return CStep(
            num_rows=num_rows,
            width=self._width,
            inner=self._inner,
            heads=self._heads,
            kv_heads=self._kv_heads,
            head_dim=self._head_dim,
            rotary_dim=cos.shape[-1],
            arena=step.arena.data_ptr(),
            place=step.places.data_ptr(),
            step=step.strides.data_ptr(),
            hidden=hidden.data_ptr(),
            history=history,
            **{name: buffer.data_ptr() for name, buffer in buffers.items()},
            **self._squeeze.fields,
        )

    def run(self, native: CStep, layers: range, num_rows: int) -> None:
        """Layers `layers` on the first `num_rows` rows."""
        native.num_rows = num_rows
        first = layers.start - self._first_layer
        self._kernel.layers(self._layers, layers.start, range(first, first + len(layers)), native)

    def count(self, squeezed: SqueezedStep) -> None:
        """Tell the fixed contexts of the step that has run how many keys were read."""
        count_read(self._squeeze, squeezed, self._kv_heads)

    def _scratch(self, name: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        held = self._buffers.get(name)
        if held is None or held.numel() < size:
            held = torch.empty(size, dtype=dtype)
        return held


class _LayerStruct:
    """A layer as the kernel reads it, and the tensors behind the pointers."""

    def __init__(self, layer: FusedLayer) -> None:
        self._norms = [norm.weight.detach().contiguous() for norm in layer.norms]
        qkv, out, gate_up, down = (_packed(linear) for linear in layer.linears)
        self.width, self.inner = int(qkv.k), int(down.k)
        self.struct = CLayer(
            qkv=qkv,
            out=out,
            gate_up=gate_up,
            down=down,
            input_norm=self._norms[0].data_ptr(),
            post_norm=self._norms[1].data_ptr(),
            eps=layer.norms[0].variance_epsilon,
            scale=layer.traits.scale,
        )


def suits(layer: FusedLayer | None) -> bool:
    """Whether the kernel knows all that the layer does."""
    return (
        layer is not None
        and not layer.has_extra_norms
        and layer.traits.window is None
        and layer.traits.cap is None
        and layer.traits.sinks is None
        and suits_heads(layer.head_dim)
        and _is_silu(layer.activation)
        and all(isinstance(linear, Int8Linear) for linear in layer.linears)
        and all(hasattr(norm, "variance_epsilon") for norm in layer.norms)
    )


def _is_silu(activation: Any) -> bool:
    """Compared by value, because the same function has several classes."""
    x = torch.linspace(-8, 8, 33)
    return bool(torch.allclose(activation(x), torch.nn.functional.silu(x), atol=1e-6))


def _packed(linear: Any) -> CLinear:
    packed = linear.packed
    if packed is None:
        raise RuntimeError("a layer that was not packed")
    struct: CLinear = packed.struct
    return struct
