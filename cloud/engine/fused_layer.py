"""A decoder layer in as few calls as it takes, for small batches where calls cost the time.

A decode step of a small model spends as long in Python and in starting kernels as in the matrix
work. This runs a layer of the common pre-norm shape with one product for queries, keys and
values and one for gate and up, and rotates queries and keys together in place. The weights are
the loaded layer's own, joined (the layer's parts become views of them, so nothing is held
twice), and so are its norms. Whether the shape is understood is not assumed but tried: `fuse`
compares with the layer itself on random rows, and gives None when they differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from cloud.attention.packed import PackedStep, StepEntry, Traits, attend
from cloud.engine.int8_linear import Int8Linear
from cloud.kernel import library as native
from cloud.kv.pool import KvPool, KvShape

logger = logging.getLogger(__name__)

# Joined products sum in another order than separate ones; float32 noise is far below this.
_SAME: Final = 1e-5
PROBE_ROWS: Final = 5


class FusedLayer:
    """Callable like `BackEngine` runs layers: rows in, rows out."""

    def __init__(self, layer: Any, traits: Traits) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index = int(attention.layer_idx)
        self._input_norm = layer.input_layernorm
        # Gemma norms what attention and MLP return; others norm only what goes in.
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
    def norms_more(self) -> bool:
        """Whether anything is normed beside what goes into attention and MLP."""
        others = (self._after_attention, self._after_mlp, self._query_norm, self._key_norm)
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

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, step: PackedStep) -> Tensor:
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
        mixed = attend(step, self.index, query, keys_values, self.traits)
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
    """Rotary embedding on the first r of [T, N, d], with the sign of the half swap in the sine.

    x cos + rotate_half(x) sin, where rotate_half gives (-x2, x1): the same products as x cos +
    (x2, x1) (-sin1, sin2). Source: Su et al. 2021, arXiv:2104.09864, eq. (34), in half layout.
    """
    width = cos.shape[-1]
    turned = heads if width == heads.shape[-1] else heads[..., :width]
    first, second = turned.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    turned.mul_(cos).add_(swapped.mul_(signed_sin))


def sign_sine(sine: Tensor) -> Tensor:
    """[T, r] sines with the first half negated, for `rotate_in_place`."""
    first, second = sine.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


def join_linears(parts: Sequence[nn.Module]) -> nn.Module:
    """One linear layer whose outputs are those of `parts` in a row; they become views of it."""
    if all(isinstance(part, Int8Linear) for part in parts):
        codes = torch.cat([_tensor(part, "codes") for part in parts])
        scale = torch.cat([_tensor(part, "scale") for part in parts])
        joined: nn.Module = Int8Linear(codes, scale, _joined_bias(parts))
        _share(joined, parts, ("codes", "scale", "bias"))
        return joined
    if not all(isinstance(part, nn.Linear) for part in parts):
        raise TypeError("layers of different kinds")
    weight = torch.cat([_tensor(part, "weight") for part in parts])
    bias = _joined_bias(parts)
    joined = nn.Linear(1, 1, bias=bias is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    joined.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    _share(joined, parts, ("weight", "bias"))
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
    reference: Callable[[Tensor, Tensor, Tensor, PackedStep], Tensor],
    shape: KvShape,
    cos: Tensor,
    sin: Tensor,
) -> FusedLayer | None:
    """The layer fused, or None (logged) where that would not give the same numbers.

    reference: the layer itself, called like FusedLayer but with the plain sine [T, r].
    cos, sin: [PROBE_ROWS or more, r] of positions 0, 1, ...
    """
    try:
        rows = torch.randn(PROBE_ROWS, _width(layer), dtype=cos.dtype, device=cos.device)
        cos, sin = cos[:PROBE_ROWS], sin[:PROBE_ROWS]
        index = _index(layer)
        plain_step = probe_step(shape, index, cos.device)
        with torch.inference_mode():
            expected = reference(rows, cos, sin, plain_step)
            if plain_step.traits is None:
                raise TypeError("it did not ask for attention")
            fused = FusedLayer(layer, plain_step.traits)
            step = probe_step(shape, index, cos.device)
            got = fused(rows, cos[:, None], sign_sine(sin)[:, None], step)
        error = float((got - expected).float().norm() / expected.float().norm())
    except (AttributeError, TypeError, RuntimeError) as reason:
        logger.info("a layer of another shape runs as it is: %s", reason)
        return None
    if not error < _SAME * (1 if shape.dtype == torch.float32 else 1000):
        logger.info("a fused layer differs by %.1e, so it runs as it is", error)
        return None
    return fused


def probe_step(shape: KvShape, layer: int, device: torch.device) -> PackedStep:
    """A step of PROBE_ROWS rows of a session of its own, entering at `layer`."""
    limit = shape.num_bytes(split=layer, max_tokens=PROBE_ROWS)
    pool = KvPool(shape, limit_bytes=limit, device=device)
    lease = pool.lease(split=layer, max_tokens=PROBE_ROWS)
    step = PackedStep([StepEntry(lease, start=0, begin=0, num_rows=PROBE_ROWS)])
    step.active = step.entries
    return step


def _index(layer: Any) -> int:
    return int(layer.self_attn.layer_idx)


def _width(layer: Any) -> int:
    return int(layer.input_layernorm.weight.shape[0])
