"""A decoder layer in few calls, for small batches in which the calls cost most of the time.

A decode step of a small model spends as long in Python and in starting kernels as in the matrix
work. `FusedLayer` runs a layer of the common pre-norm shape with one product for queries, keys and
values and one for gate and up, and rotates queries and keys together in place. It joins the loaded
layer's own weights; the layer's parts become views of the joined ones, so nothing is held twice.
`fuse` tests whether the shape is understood: it compares with the layer itself on random rows and
gives None where they differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from cloud.attention.base import Attend, AttentionTraits
from cloud.attention.in_place import InPlaceAttention
from cloud.attention.packed_step import PackedStep, StepEntry
from cloud.engine.int4_linear import Int4Linear
from cloud.engine.int8_linear import Int8Linear
from cloud.engine.weight_only_linear import WeightOnlyLinear
from cloud.kernel import library as native
from cloud.kv.pool import KvPool, KvShape

logger = logging.getLogger(__name__)

# Joined products sum in another order than separate ones. That noise is far smaller.
_INT4_TENSORS: Final = ("codes", "scale", "low")
_MAX_FLOAT32_ERROR: Final = 1e-5  # relative
_MAX_HALF_ERROR: Final = 1e-2  # of 16-bit numbers
PROBE_ROWS: Final = 5


class FusedLayer:
    """One layer as a callable: rows in, rows out."""

    def __init__(self, layer: Any, traits: AttentionTraits) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index = int(attention.layer_idx)
        self._input_norm = layer.input_layernorm
        # Gemma norms what attention and MLP return. Others norm only what goes in.
        sandwich = hasattr(layer, "pre_feedforward_layernorm")
        self._after_attention = layer.post_attention_layernorm if sandwich else None
        self._before_mlp = (
            layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm
        )
        self._after_mlp = layer.post_feedforward_layernorm if sandwich else None
        self._query_norm = getattr(attention, "q_norm", None)
        self._key_norm = getattr(attention, "k_norm", None)
        self.head_dim = int(attention.head_dim)
        self.num_heads = attention.config.num_attention_heads
        self.num_kv_heads = attention.config.num_key_value_heads
        self.traits = traits
        joined = getattr(attention, "qkv_proj", None)
        parts = (attention.q_proj, attention.k_proj, attention.v_proj) if joined is None else ()
        self._qkv = joined or join_linears(parts)
        self._out = attention.o_proj
        gate_up = getattr(mlp, "gate_up_proj", None)
        halves = (mlp.gate_proj, mlp.up_proj) if gate_up is None else ()
        self._gate_up = gate_up or join_linears(halves)
        self._parts = (*parts, *halves)
        self._down = mlp.down_proj
        self.activation = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn

    @property
    def linears(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        """Queries, keys and values; attention's output; gate and up; down."""
        return self._qkv, self._out, self._gate_up, self._down

    @property
    def norms(self) -> tuple[Any, Any]:
        """Before attention and before the MLP."""
        return self._input_norm, self._before_mlp

    @property
    def output_norms(self) -> tuple[Any, Any]:
        """Of what attention and the MLP return; None each where there is none."""
        return self._after_attention, self._after_mlp

    @property
    def head_norms(self) -> tuple[Any, Any]:
        """Of each head's queries and keys; None each where there is none."""
        return self._query_norm, self._key_norm

    @property
    def has_extra_norms(self) -> bool:
        """Whether there are norms beside the two of what goes into attention and MLP."""
        others = (*self.output_norms, *self.head_norms)
        return any(norm is not None for norm in others)

    def pack(self) -> None:
        """Give 8-bit weights to the compiled kernel; the layer's own modules lose theirs."""
        for linear in self.linears:
            if isinstance(linear, Int8Linear):
                linear.pack()
        if native.load() is not None:
            for part in self._parts:
                if isinstance(part, Int8Linear) and part.packed is None:
                    part.drop()

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """hidden: [T, D]; cos, signed sin: [T, 1, r]. Returns [T, D]."""
        num_heads, num_kv_heads = self.num_heads, self.num_kv_heads
        qkv = self._qkv(self._input_norm(hidden))
        qkv = qkv.view(-1, num_heads + 2 * num_kv_heads, self.head_dim)  # [T, H + 2 KV, d]
        rotated = qkv[:, : num_heads + num_kv_heads]
        if self._query_norm is not None and self._key_norm is not None:
            query, key = rotated.split((num_heads, num_kv_heads), dim=1)
            query.copy_(self._query_norm(query))
            key.copy_(self._key_norm(key))
        rotate_in_place(rotated, cos, sin)
        query, keys_values = qkv[:, :num_heads], qkv[:, num_heads:]
        mixed = attend(self.index, query, keys_values, self.traits)
        attended = self._out(mixed.reshape(hidden.shape[0], -1))
        if self._after_attention is not None:
            attended = self._after_attention(attended)
        hidden = attended.add_(hidden)
        gate, up = self._gate_up(self._before_mlp(hidden)).chunk(2, dim=-1)
        out = self._down(self.activation(gate).mul_(up))
        if self._after_mlp is not None:
            out = self._after_mlp(out)
        return torch.add(out, hidden, out=out)


def rotate_in_place(heads: Tensor, cos: Tensor, signed_sin: Tensor) -> None:
    """Rotary embedding of the first r channels of [T, N, d]; the sine has the swap's sign.

    The definition is x cos + rotate_half(x) sin, where rotate_half gives (-x2, x1). This computes
    the same products as x cos + (x2, x1) (-sin1, sin2). Source: Su et al. 2021, arXiv:2104.09864,
    eq. (34), in half layout.
    """
    width = cos.shape[-1]
    rotated = heads if width == heads.shape[-1] else heads[..., :width]
    first, second = rotated.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    rotated.mul_(cos).add_(swapped.mul_(signed_sin))


def sign_sine(sine: Tensor) -> Tensor:
    """[T, r] sines with the first half negated, for `rotate_in_place`."""
    first, second = sine.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


def join_linears(parts: Sequence[nn.Module]) -> nn.Module:
    """One linear layer that gives the outputs of `parts` in a row; they become views of it.

    Raises TypeError for layers of different kinds, or where only some have a bias.
    """
    for coded in (Int8Linear, WeightOnlyLinear):
        if all(isinstance(part, coded) for part in parts):
            return _join_coded(coded, parts)
    if all(isinstance(part, Int4Linear) for part in parts):
        return _join_int4(parts)
    if not all(isinstance(part, nn.Linear) for part in parts):
        raise TypeError("layers of different kinds")
    weight = torch.cat([_tensor(part, "weight") for part in parts])
    bias = _joined_bias(parts)
    joined = nn.Linear(1, 1, bias=bias is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    joined.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    _share(joined, parts, ("weight", "bias"))
    return joined


def _join_coded(
    kind: type[Int8Linear] | type[WeightOnlyLinear], parts: Sequence[nn.Module]
) -> nn.Module:
    codes = [_tensor(part, "codes") for part in parts]
    if len({part.dtype for part in codes}) != 1:
        raise TypeError("codes of different types")
    scale = torch.cat([_tensor(part, "scale") for part in parts])
    joined = kind(torch.cat(codes), scale, _joined_bias(parts))
    _share(joined, parts, ("codes", "scale", "bias"))
    return joined


def _join_int4(parts: Sequence[nn.Module]) -> nn.Module:
    codes, scale, low = (
        torch.cat([_tensor(part, name) for part in parts]) for name in _INT4_TENSORS
    )
    widths = {part.in_features for part in parts if isinstance(part, Int4Linear)}
    if len(widths) != 1:
        raise TypeError("layers of different widths")
    (width,) = widths
    joined = Int4Linear(codes, scale, low, _joined_bias(parts), width=width)
    _share(joined, parts, (*_INT4_TENSORS, "bias"))
    return joined


def _joined_bias(parts: Sequence[nn.Module]) -> Tensor | None:
    biases = [part.bias for part in parts if isinstance(part.bias, Tensor)]
    if biases and len(biases) != len(parts):
        raise TypeError("some of the layers have a bias, others do not")
    return torch.cat([bias.detach() for bias in biases]) if biases else None


def _share(joined: nn.Module, parts: Sequence[nn.Module], names: Sequence[str]) -> None:
    begin = 0
    for part in parts:
        num_rows = 0
        for name in names:
            whole, own = getattr(joined, name), getattr(part, name)
            if whole is None:
                continue
            num_rows = own.shape[0]
            view = whole.detach()[begin : begin + num_rows]
            is_parameter = isinstance(own, nn.Parameter)
            setattr(part, name, nn.Parameter(view, requires_grad=False) if is_parameter else view)
        if isinstance(part, Int8Linear):
            part.refresh()
        begin += num_rows


def _tensor(part: nn.Module, name: str) -> Tensor:
    tensor = getattr(part, name)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is not a tensor")
    return tensor.detach()


def fuse(
    layer: nn.Module,
    reference: Callable[[Tensor, Tensor, Tensor, Attend], Tensor],
    shape: KvShape,
    cos: Tensor,
    sin: Tensor,
) -> FusedLayer | None:
    """The layer fused, or None (logged) where that would not give the same numbers.

    reference: the layer itself, called like FusedLayer but with the plain sine [T, r].
    cos, sin: [PROBE_ROWS or more, r] of positions 0, 1, ...
    """
    try:
        # The same rows in every process: replicas of a model must all decide alike.
        always = torch.Generator().manual_seed(0)
        rows = torch.randn(PROBE_ROWS, _width(layer), generator=always).to(cos)
        cos, sin = cos[:PROBE_ROWS], sin[:PROBE_ROWS]
        index = _index(layer)
        asked = _TraitsRecorder(_probe_attention(shape, index, cos.device))
        with torch.inference_mode():
            expected = reference(rows, cos, sin, asked)
            if asked.traits is None:
                raise TypeError("it did not ask for attention")
            fused = FusedLayer(layer, asked.traits)
            attend = _probe_attention(shape, index, cos.device)
            got = fused(rows, cos[:, None], sign_sine(sin)[:, None], attend)
        error = float((got - expected).float().norm() / expected.float().norm())
    except (AttributeError, TypeError, RuntimeError) as reason:
        logger.info("a layer of another shape runs as it is: %s", reason)
        return None
    if not error < (_MAX_FLOAT32_ERROR if shape.dtype == torch.float32 else _MAX_HALF_ERROR):
        logger.info("a fused layer differs by %.1e, so it runs as it is", error)
        return None
    return fused


class _TraitsRecorder:
    """An Attend that remembers the traits that the layer asked for last."""

    def __init__(self, attend: Attend) -> None:
        self._attend = attend
        self.traits: AttentionTraits | None = None

    def __call__(
        self, layer: int, query: Tensor, keys_values: Tensor, traits: AttentionTraits
    ) -> Tensor:
        self.traits = traits
        return self._attend(layer, query, keys_values, traits)


def _probe_attention(shape: KvShape, layer: int, device: torch.device) -> Attend:
    step = probe_step(shape, layer, device)
    return InPlaceAttention(step).over(step.entries)


def probe_step(shape: KvShape, layer: int, device: torch.device) -> PackedStep:
    """A step of PROBE_ROWS rows of a session of its own, entering at `layer`."""
    limit = shape.num_bytes(split=layer, max_tokens=PROBE_ROWS)
    pool = KvPool(shape, limit_bytes=limit, device=device)
    lease = pool.lease(split=layer, max_tokens=PROBE_ROWS)
    return PackedStep([StepEntry(lease, start=0, begin=0, num_rows=PROBE_ROWS)])


def _index(layer: Any) -> int:
    return int(layer.self_attn.layer_idx)


def _width(layer: Any) -> int:
    return int(layer.input_layernorm.weight.shape[0])
