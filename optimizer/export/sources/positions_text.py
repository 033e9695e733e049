"""How a config places positions, in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def positions_text(config: Any) -> str:
    """Such as "llama3, factor 8, from 8192, base 500000"; by layer type where they differ."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {name: value for name, value in rope.items() if isinstance(value, Mapping)}
    if kinds:
        return "; ".join(f"{name}: {_text(value)}" for name, value in sorted(kinds.items()))
    return _text(rope) if rope else "none or unknown"


def _text(rope: Mapping[str, Any]) -> str:
    words = [str(rope.get("rope_type") or "default")]
    for key, word in (
        ("factor", "factor"),
        ("original_max_position_embeddings", "from"),
        ("rope_theta", "base"),
        ("partial_rotary_factor", "share of a head"),
    ):
        value = rope.get(key)
        if isinstance(value, (int, float)) and not (key == "partial_rotary_factor" and value == 1):
            words.append(f"{word} {value:.12g}")
    return ", ".join(words)
