"""A draft head as a network: tokens and states in, states of its own and logits out.

Letters in shapes are those of `cloud.drafting.draft_network`; V' are the tokens that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cloud.attention.base import Attend, AttentionTraits
from cloud.drafting.draft_network import Embed, HeadChoices, KvHeads
from cloud.drafting.head_spec import HeadWeights
from cloud.engine.fused_layer import rotate_in_place, sign_sine
from cloud.engine.int8_linear import Int8Linear, int8_linear, runs_int8
from cloud.engine.rotary import RotaryTables

_LARGEST_CODE: Final = 127.0
_TINY: Final = 1e-12


class EagleHead:
    """See the module's docstring. A DraftNetwork on a CPU, in float32.

    Its matrices are rounded to 8 bits where the compiled kernel runs them. That changes guesses a
    little and no token. embed: the model's own embedding, for a head that brings none. logits: the
    model's own norm-free head [T, D] -> [T, V], for a head without one.
    """

    def __init__(
        self,
        weights: HeadWeights,
        *,
        embed: Embed | None,
        logits: Callable[[Tensor], Tensor],
        quantize: bool = True,
    ) -> None:
        spec, tensors = weights.spec, weights.tensors
        self.spec = spec
        self.form = spec.form
        self.layers = spec.layers
        self.reads_normed = not spec.is_eagle3
        self.kv_heads = KvHeads(spec.num_kv_heads, spec.head_dim)
        self._norms = {name: one for name, one in tensors.items() if one.dim() == 1}
        self._token_ids = weights.token_ids
        self._embedding = weights.embedding
        self._embed = embed
        self._rounded = quantize and runs_int8("cpu")
        self.num_bytes = sum(
            one.numel() * (1 if self._rounded and one.dim() == 2 else 4) for one in tensors.values()
        )
        self._fc = self._joined(tensors, "fc")
        self._qkv = self._joined(tensors, *(f"self_attn.{name}_proj" for name in "qkv"))
        self._out = self._joined(tensors, "self_attn.o_proj")
        self._gate_up = self._joined(tensors, "mlp.gate_proj", "mlp.up_proj")
        self._down = self._joined(tensors, "mlp.down_proj")
        self._logits = logits
        if "lm_head.weight" in tensors:
            self._logits = self._joined(tensors, "lm_head")
        self._traits = AttentionTraits(scale=spec.head_dim**-0.5)
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        rotary = LlamaRotaryEmbedding(spec.config)
        self._rotary = RotaryTables(rotary, spec.config, torch.float32)

    def run(
        self, states: Tensor, token_ids: Sequence[int], positions: Sequence[int], attend: Attend
    ) -> Tensor:
        """See DraftNetwork."""
        fused = self._fc(states) if self.spec.is_eagle3 else states
        return self._layer(fused, self._embedded(token_ids), positions, attend)

    def follow(
        self, own: Tensor, token_ids: Sequence[int], positions: Sequence[int], attend: Attend
    ) -> Tensor:
        """See DraftNetwork."""
        return self._layer(own, self._embedded(token_ids), positions, attend)

    def choices(self, own: Tensor, count: int) -> HeadChoices:
        """See DraftNetwork."""
        if "norm.weight" in self._norms:
            own = self._norm("norm", own)
        shares, index = self._logits(own).softmax(-1).topk(count, dim=-1)
        return HeadChoices(index if self._token_ids is None else self._token_ids[index], shares)

    def _layer(
        self, state: Tensor, embedded: Tensor, positions: Sequence[int], attend: Attend
    ) -> Tensor:
        spec = self.spec
        if spec.is_eagle3:
            residual = state
            sides = self._norm("input_layernorm", embedded), self._norm("hidden_norm", state)
            x = torch.cat(sides, -1)
        else:
            residual = self._fc(torch.cat([embedded, state], -1))
            has_norm = "input_layernorm.weight" in self._norms
            x = self._norm("input_layernorm", residual) if has_norm else residual
        qkv = self._qkv(x).view(len(x), spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
        self._rotate(qkv[:, : spec.num_heads + spec.num_kv_heads], positions)
        query, keys_values = qkv[:, : spec.num_heads], qkv[:, spec.num_heads :]
        mixed = attend(0, query, keys_values, self._traits)
        hidden = residual + self._out(mixed.reshape(len(x), -1))
        gate, up = self._gate_up(self._norm("post_attention_layernorm", hidden)).chunk(2, -1)
        out: Tensor = hidden + self._down(F.silu(gate) * up)
        return out

    def _rotate(self, heads: Tensor, positions: Sequence[int]) -> None:
        """Rotate [T, H, d] in place."""
        rows = self._rotary.rows(torch.tensor(positions), max(positions) + 1)
        cos, sin = next(iter(rows.values()))
        rotate_in_place(heads, cos[:, None], sign_sine(sin)[:, None])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight = self._norms[f"{name}.weight"]
        return F.rms_norm(x, weight.shape, weight, self.spec.eps)

    def _embedded(self, token_ids: Sequence[int]) -> Tensor:
        if self._embedding is not None:
            return self._embedding[list(token_ids)].float()
        if self._embed is None:
            raise ValueError("a head without an embedding of its own, and the model has none here")
        return self._embed(token_ids)

    def _joined(self, tensors: Mapping[str, Tensor], *names: str) -> nn.Module:
        """One product for several matrices of the same input."""
        weight = torch.cat([tensors[f"{name}.weight"] for name in names])
        biases = [tensors[f"{name}.bias"] for name in names if f"{name}.bias" in tensors]
        bias = torch.cat(biases) if biases else None
        if self._rounded:
            scale = weight.abs().amax(1).clamp_(min=_TINY) / _LARGEST_CODE
            codes = torch.round(weight / scale[:, None]).to(torch.int8)
            made = int8_linear(codes, scale, bias)
            if isinstance(made, Int8Linear):
                made.pack()
            return made
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=False)
        return linear
