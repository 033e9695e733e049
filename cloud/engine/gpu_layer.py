"""A decoder layer of the common pre-norm shape in ten launches, for GPUs.

Four are the matrix products of torch's own library. The others are Triton kernels for what lies
between them (`cloud.gpu.layer_kernels`) and for attention. `gpu_layer` tests whether a layer is
understood: it compares with the layer itself on random rows, and gives None where they differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cloud.attention.base import AttentionTraits
from cloud.attention.in_place import InPlaceAttention
from cloud.attention.packed_step import PackedStep, StepEntry
from cloud.attention.paged import PagedStep, paged_step
from cloud.engine.fused_layer import PROBE_ROWS, FusedLayer, sign_sine
from cloud.engine.weight_only_linear import WeightOnlyLinear
from cloud.gpu.layer_kernels import RmsNorm, add, add_norm, gated, rotate_and_store
from cloud.gpu.one_row import one_row_linear
from cloud.kv.pool import KvLease, KvPool, KvShape
from cloud.kv.tables import BlockTables

logger = logging.getLogger(__name__)

# The kernels keep more digits between two steps than the layers of transformers do.
_MAX_FLOAT32_ERROR: Final = 2e-5  # relative
_MAX_HALF_ERROR: Final = 2e-2  # of 16-bit numbers
_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
}


class GpuLayer:
    """One layer of a step. It holds no weights of its own: they are the fused layer's."""

    def __init__(self, fused: FusedLayer) -> None:
        self.index = fused.index
        self._qkv, self._out, self._gate_up, self._down = fused.linears
        before_attention, before_mlp = fused.norms
        self._before_attention = norm_of(before_attention)
        self._before_mlp = norm_of(before_mlp)
        after_attention, after_mlp = fused.output_norms
        self._after_attention = None if after_attention is None else norm_of(after_attention)
        self.after_mlp = None if after_mlp is None else norm_of(after_mlp)
        query, key = fused.head_norms
        self._head_norms = None if query is None else (norm_of(query), norm_of(key))
        if self._head_norms and self._head_norms[0].eps != self._head_norms[1].eps:
            raise TypeError("queries and keys are normed in different ways")
        self._num_heads, self._head_dim = fused.num_heads, fused.head_dim
        self._traits = fused.traits
        if fused.traits.sinks is not None:
            self._traits = fused.traits._replace(sinks=fused.traits.sinks.detach().float())
        self._activation = activation_of(fused.activation, before_mlp.weight.device)

    @property
    def products(self) -> tuple[Any, Any, Any, Any]:
        """The matrix products: queries, keys and values; attention's output; gate and up; down."""
        return self._qkv, self._out, self._gate_up, self._down

    @property
    def traits(self) -> AttentionTraits:
        """How it attends."""
        return self._traits

    def __call__(
        self,
        hidden: Tensor,
        delta: Tensor | None,
        delta_norm: RmsNorm | None,
        step: PagedStep,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        """hidden: [T, D], changed in place. delta: [T, D], what the layer before has yet to add,
        after `delta_norm`; None: nothing. rotary: cosine and sine [P, r] of all positions.

        Returns what this layer has yet to add, [T, D] (`after_mlp` is its norm).
        """
        layer = self.index
        rows = step.rows.first(hidden.shape[0])
        normed = add_norm(
            hidden, delta, self._before_attention, rows=rows, layer=layer, after=delta_norm
        )
        queries = rotate_and_store(
            product(self._qkv, normed),
            rows=rows,
            layer=layer,
            num_heads=self._num_heads,
            head_dim=self._head_dim,
            cosine=rotary[0],
            sine=rotary[1],
            norms=self._head_norms,
        )
        mixed = step.attend(layer, queries, self._traits)
        attended = product(self._out, mixed.view(hidden.shape[0], -1))
        normed = add_norm(
            hidden,
            attended,
            self._before_mlp,
            rows=rows,
            layer=layer + 1,
            after=self._after_attention,
        )
        return product(self._down, gated(product(self._gate_up, normed), self._activation))


def gpu_layer(fused: FusedLayer, shape: KvShape, cos: Tensor, sin: Tensor) -> GpuLayer | None:
    """The layer for a GPU, or None (logged) where that would not give the same numbers.

    It is tried with several rows and then with one, since both ways have kernels of their own.
    cos, sin: [PROBE_ROWS + 1 or more, r] of positions 0, 1, ...
    """
    rotary = (cos.contiguous(), sin.contiguous())
    width = fused.norms[0].weight.shape[0]
    rows = torch.randn(PROBE_ROWS + 1, width, dtype=cos.dtype, device=cos.device)
    tokens = PROBE_ROWS + 1
    limit_bytes = shape.num_bytes(split=fused.index, max_tokens=tokens)
    errors: list[float] = []
    try:
        layer = GpuLayer(fused)
        tables = BlockTables(cos.device)
        pools = [KvPool(shape, limit_bytes=limit_bytes, device=cos.device) for _ in range(2)]
        own, other = (pool.lease(split=fused.index, max_tokens=tokens) for pool in pools)
        for part in (slice(0, PROBE_ROWS), slice(PROBE_ROWS, tokens)):
            expected = _fused_rows(fused, other, rows[part].clone(), rotary, part.start)
            got = rows[part].clone()
            with torch.inference_mode():
                entry = StepEntry(own, start=part.start, begin=0, num_rows=len(got))
                group = fused.num_heads // fused.num_kv_heads
                step = paged_step([entry], tables, own.pool.arena, group=group)
                delta = layer(got, None, None, step, rotary)
                add(got, delta, rows=step.rows, layer=fused.index + 1, after=layer.after_mlp)
            errors.append(float((got - expected).float().norm() / expected.float().norm()))
    except Exception as reason:  # a shape that is not understood, or whatever Triton raises
        line = (str(reason).strip().splitlines() or [""])[0]
        logger.info("a layer runs in torch (%s: %s)", type(reason).__name__, line[:200])
        return None
    limit = _MAX_FLOAT32_ERROR if cos.dtype == torch.float32 else _MAX_HALF_ERROR
    if not all(error < limit for error in errors):  # NaN is no number below
        logger.warning("a layer for the GPU differs by %s, so torch runs it", errors)
        return None
    return layer


@torch.inference_mode()
def _fused_rows(
    fused: FusedLayer, lease: KvLease, rows: Tensor, rotary: tuple[Tensor, Tensor], start: int
) -> Tensor:
    """What the fused layer gives of `rows` at positions from `start` on, in torch."""
    entry = StepEntry(lease, start=start, begin=0, num_rows=len(rows))
    attend = InPlaceAttention(PackedStep([entry])).over([entry])
    cos, sin = (table[start : start + len(rows)] for table in rotary)
    return fused(rows, cos[:, None], sign_sine(sin)[:, None], attend)


def product(linear: Any, rows: Tensor) -> Tensor:
    """A linear layer's output: [T, K] -> [T, N]. One row goes to a kernel of our own."""
    if rows.shape[0] == 1 and type(linear) is nn.Linear:
        return one_row_linear(rows, linear.weight, linear.bias)
    if rows.shape[0] == 1 and isinstance(linear, WeightOnlyLinear):
        return one_row_linear(rows, linear.codes, linear.bias, scale=linear.scale)
    out: Tensor = linear(rows)
    return out


def norm_of(module: Any) -> RmsNorm:
    """A root mean square norm module's weight and epsilon, found by trying.

    Gemma multiplies by 1 + weight. Raises TypeError for another kind of norm.
    """
    weight = module.weight.detach()
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(eps, float):
        raise TypeError("a norm without an epsilon")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, weight.shape[0], generator=generator).to(weight.device)
    want = module(x.to(weight.dtype)).float()
    scaled = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)
    for candidate in (weight.float(), weight.float() + 1.0):
        if bool(torch.allclose(scaled * candidate, want, rtol=2e-2, atol=2e-2)):
            return RmsNorm(candidate.contiguous(), eps)
    raise TypeError("a norm of another kind")


def activation_of(activation: Any, device: torch.device) -> str:
    """The name of an activation in `cloud.gpu.layer_kernels.ACTIVATIONS`, found by its values.

    Raises TypeError for one that is not there.
    """
    x = torch.linspace(-8, 8, 129, device=device)
    for name, function in _ACTIVATIONS.items():
        if bool(torch.allclose(activation(x), function(x), atol=1e-6, rtol=1e-5)):
            return name
    raise TypeError("an activation that the kernels do not know")
