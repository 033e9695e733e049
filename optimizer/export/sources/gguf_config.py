"""The transformers config of a GGUF file: sizes, what llama.cpp knows without a key, positions.

transformers has the tables of keys, which are used here. Its own reading takes ten times as long,
and leaves out sizes of heads and positions.
"""

from __future__ import annotations

from typing import Any, Final

from optimizer.errors import ModelError
from optimizer.export.sources.expected_tensors import make_skeleton
from optimizer.export.sources.gguf_files import GgufFiles
from optimizer.export.sources.gguf_positions import local_rope_of, rope_of

# llama.cpp's models whose attention scale is not that of the head: (architecture, layers).
_SCALED_BY_WIDTH: Final = (("gemma2", 46), ("gemma3", 62))
# transformers' names where they differ from llama.cpp's.
_TABLE_OF: Final = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
_MODEL_TYPE_OF: Final = {"gemma3": "gemma3_text"}
# transformers reads these with code of its own.
_NOT_READ: Final = (
    *("bloom", "falcon", "gemma4", "gpt-oss", "gpt2", "lfm2", "mamba", "minimax-m2", "stablelm"),
    *("t5", "t5encoder", "umt5", "deci"),
)


def gguf_config(files: GgufFiles) -> Any:
    """The transformers config of a model in GGUF.

    Raises ModelError for an architecture that is not read, and for keys that make no config.
    """
    from transformers import AutoConfig

    kind, values = _values(files)
    try:
        config: Any = AutoConfig.for_model(kind, **values)
    except Exception as error:  # wrong values make it raise nearly anything
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{files.path}: its keys make no model config ({reason})") from error
    head_dim = files.own_fact("attention.key_length")
    if head_dim is not None:
        config.head_dim = int(head_dim)
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    _set_gemma(config, files, head_dim)
    _set_positions(config, files, head_dim)
    if not config.architectures:
        config.architectures = [type(make_skeleton(config, str(files.path))).__name__]
    return config


def _values(files: GgufFiles) -> tuple[str, dict[str, Any]]:
    """transformers' model type, and the config's values that the file has keys for."""
    from transformers import integrations

    tables: Any = integrations
    architecture = files.architecture
    table = _TABLE_OF.get(architecture, architecture)
    known = tables.GGUF_CONFIG_MAPPING.get(table)
    if known is None or architecture in _NOT_READ:
        raise ModelError(
            f"{files.path}: architecture {architecture!r:.40} is not read from GGUF; "
            "use the model's safetensors folder"
        )
    values: dict[str, Any] = dict(tables.GGUF_CONFIG_DEFAULTS_MAPPING.get(table) or {})
    found = {name: files.own_fact(key) for key, name in known.items() if name}
    tokens = tables.GGUF_CONFIG_MAPPING["tokenizer"].items()
    found |= {name: files.fact(f"tokenizer.{key}") for key, name in tokens if name}
    values |= {name: value for name, value in found.items() if value is not None}
    if "vocab_size" not in values:
        values["vocab_size"] = files.length("tokenizer.ggml.tokens")
    values["tie_word_embeddings"] = "output.weight" not in files.tensors
    return _MODEL_TYPE_OF.get(table, table), values


def _set_gemma(config: Any, files: GgufFiles, head_dim: int) -> None:
    """What llama.cpp knows of Gemma 2 and 3 without a key: their scale of the scores."""
    if not hasattr(config, "query_pre_attn_scalar"):
        return
    by_width = (files.architecture, config.num_hidden_layers) in _SCALED_BY_WIDTH
    config.query_pre_attn_scalar = (
        config.hidden_size // config.num_attention_heads if by_width else head_dim
    )
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        value = files.own_fact(name)
        if value is not None:
            setattr(config, name, float(value))


def _set_positions(config: Any, files: GgufFiles, head_dim: int) -> None:
    rope = rope_of(files, head_dim, int(config.max_position_embeddings))
    present = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in present:  # Gemma 3: other positions in layers with a window
        config.rope_parameters = {
            **present,
            "full_attention": rope,
            "sliding_attention": local_rope_of(files),
        }
        return
    config.rope_parameters = rope
    original = rope.get("original_max_position_embeddings")
    if rope["rope_type"] == "longrope" and original is not None:
        config.original_max_position_embeddings = original
