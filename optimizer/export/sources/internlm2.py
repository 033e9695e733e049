"""InternLM2 read as the Llama that it is: transformers 5 has no class for it.

Its layers compute what Llama's do. Names differ, and queries, keys and values are one matrix, in
groups of one KV head: the group's query heads, then its key, then its value.

    model.tok_embeddings                 model.embed_tokens
    model.layers.N.attention.wqkv, .wo   self_attn.q_proj, k_proj, v_proj, o_proj
    model.layers.N.feed_forward.w1 w3 w2 mlp.gate_proj, up_proj, down_proj
    model.layers.N.attention_norm        input_layernorm (ffn_norm: post_attention_layernorm)
    output                               lm_head
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import Tensor

from optimizer.errors import ModelError
from optimizer.export.sources.packed.assembly import (
    AssembledTensor,
    Assembly,
    RawReader,
    check_shape,
)
from optimizer.export.sources.safetensors_header import StoredTensor

MODEL_TYPE: Final = "internlm2"
_KEPT: Final = (
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)
_PARTS: Final = {
    "tok_embeddings": "embed_tokens",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_PACKED: Final = "attention.wqkv."


def config_as_llama(values: Mapping[str, Any], where: str) -> Any:
    """The Llama config of an InternLM2's config.json. Raises ModelError."""
    from transformers import LlamaConfig

    kept = {name: values[name] for name in _KEPT if values.get(name) is not None}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": values.get("rope_theta", 1e4)}
    scaling = values.get("rope_scaling")
    if scaling is not None:
        if not isinstance(scaling, dict):
            raise ModelError(f"{where}: rope_scaling is no mapping")
        rope |= {("rope_type" if name == "type" else name): v for name, v in scaling.items()}
    if values.get("bias"):  # of attention alone, whatever its name says
        kept["attention_bias"] = True
    try:
        return LlamaConfig(**kept, rope_parameters=rope, architectures=["LlamaForCausalLM"])
    except Exception as error:  # wrong values make it raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{where}: not a readable InternLM2 config ({reason})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class InternLm2Names:
    """The weights of an InternLM2 under Llama's names. It is a PackedFormat.

    num_heads, num_kv_heads, head_dim: how `wqkv` is cut.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    name: str = MODEL_TYPE

    @classmethod
    def of(cls, config: Any) -> InternLm2Names:
        """For the config that `config_as_llama` made."""
        heads = int(config.num_attention_heads)
        return cls(
            num_heads=heads,
            num_kv_heads=int(config.num_key_value_heads),
            head_dim=int(config.head_dim or config.hidden_size // heads),
        )

    def assemble(self, stored: Mapping[str, StoredTensor], raw: RawReader) -> Assembly:
        """See PackedFormat."""
        weights: dict[str, AssembledTensor] = {}
        used: set[str] = set()
        for name, tensor in stored.items():
            if _PACKED in name:
                weights |= self._cut(name, tensor, raw)
            elif (llama := _llama_name(name)) != name:
                weights[llama] = _renamed(llama, tensor, raw)
            else:
                continue
            used.add(name)
        return Assembly(weights=weights, used=frozenset(used))

    def _cut(self, name: str, tensor: StoredTensor, raw: RawReader) -> dict[str, AssembledTensor]:
        groups, size = self.num_kv_heads, self.head_dim
        queries = self.num_heads // groups
        rows = groups * (queries + 2) * size
        check_shape(tensor, (rows, *tensor.shape[1:]), "the config's heads")
        layer, _, part = name.partition(_PACKED)
        spans = {"q": (0, queries), "k": (queries, 1), "v": (queries + 1, 1)}

        def reading(first: int, count: int) -> AssembledTensor:
            def read() -> Tensor:
                grouped = raw(tensor).unflatten(0, (groups, queries + 2, size))
                cut: Tensor = grouped[:, first : first + count].flatten(0, 2)
                return cut

            held = groups * count * size
            shape = (held, *tensor.shape[1:])
            num_bytes = tensor.num_bytes * held // rows
            stored = replace(tensor, shape=shape, num_bytes=num_bytes)
            return AssembledTensor(stored=stored, read=read)

        found = {}
        for letter, span in spans.items():
            llama = f"{layer}self_attn.{letter}_proj.{part}"
            one = reading(*span)
            found[llama] = replace(one, stored=replace(one.stored, name=llama))
        return found


def _renamed(name: str, tensor: StoredTensor, raw: RawReader) -> AssembledTensor:
    return AssembledTensor(stored=replace(tensor, name=name), read=lambda: raw(tensor))


def _llama_name(name: str) -> str:
    if name.startswith("output."):
        return "lm_head." + name.removeprefix("output.")
    for part, llama in _PARTS.items():
        if f".{part}." in name:
            return name.replace(f".{part}.", f".{llama}.")
    return name
