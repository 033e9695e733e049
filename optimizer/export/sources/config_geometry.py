"""A Hugging Face config as a ModelGeometry, with the same names for every architecture.

optimum's NormalizedConfigManager knows what each family calls its numbers. Families that it does
not list yet use the names of its grouped-query text config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimum.utils import NormalizedConfigManager
from optimum.utils.normalized_config import NormalizedTextConfigWithGQA

from optimizer.artifacts.geometry import ModelGeometry
from optimizer.errors import ModelError
from optimizer.export.sources.internlm2 import MODEL_TYPE, config_as_llama
from optimizer.export.sources.model_json import read_object
from optimizer.families import ModelFamily, family_of, front_family, position_limit


def geometry_of(config: Any) -> ModelGeometry:
    """The numbers of a transformers config of one of the supported architectures.

    The context ends where positions would get other frequencies (`position_limit`).
    """
    known = NormalizedConfigManager._conf.get(config.model_type, NormalizedTextConfigWithGQA)
    normalized = known(config)
    num_heads = int(normalized.num_attention_heads)
    layer_types = getattr(config, "layer_types", None) or []
    sliding = tuple(i for i, kind in enumerate(layer_types) if kind == "sliding_attention")
    family = family_of(config)
    slides = family is None or family.sliding_windows
    window = getattr(config, "sliding_window", None) if slides else None
    biased = family is not None and family.always_attention_bias
    has_window = window is not None and (bool(sliding) or not layer_types)
    if getattr(config, "use_sliding_window", True) is False:
        has_window = False
    return ModelGeometry(
        architecture=config.architectures[0],
        num_layers=int(normalized.num_layers),
        hidden_size=int(normalized.hidden_size),
        num_heads=num_heads,
        num_kv_heads=_optional(config, "num_key_value_heads", num_heads),
        head_dim=int(getattr(config, "head_dim", None) or int(normalized.hidden_size) // num_heads),
        intermediate_size=int(
            getattr(config, family.inner_size) if family else config.intermediate_size
        ),
        vocab_size=int(normalized.vocab_size),
        context_length=position_limit(config),
        tied_embeddings=bool(config.tie_word_embeddings),
        attention_bias=bool(
            biased or getattr(config, "attention_bias", False) or getattr(config, "use_bias", False)
        ),
        sliding_window=int(window) if has_window and window is not None else None,
        sliding_layers=sliding if has_window else (),
        gated_mlp=family is None or family.gated,
        **_experts(config, family),
    )


def _experts(config: Any, family: ModelFamily | None) -> dict[str, int]:
    if family is None or family.experts is None:
        return {}
    size = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    return {
        "num_experts": int(getattr(config, family.experts.count)),
        "experts_per_token": int(config.num_experts_per_tok),
        "expert_size": int(size),
    }


def geometry_of_config(path: Path) -> ModelGeometry:
    """The geometry of a `config.json`, or of a folder that has one.

    No weights are needed, so a model that is too large for this machine can be planned. Raises
    ModelError where the config is not readable or the architecture is not supported.
    """
    config = read_config(path / "config.json" if path.is_dir() else path)
    front_family(config)
    return geometry_of(config)


def read_config(path: Path) -> Any:
    """The transformers config of a `config.json`; no code of its folder is run.

    Raises ModelError, naming the file, for a config that is not readable.
    """
    from transformers import AutoConfig

    values = read_object(path)  # transformers reads it without any bounds
    if values.get("model_type") == MODEL_TYPE:
        return config_as_llama(values, str(path))
    try:
        return AutoConfig.from_pretrained(
            path.parent, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # wrong values make it raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: not a readable model config ({reason})") from error


def _optional(config: Any, name: str, default: int) -> int:
    value = getattr(config, name, None)
    return default if value is None else int(value)
