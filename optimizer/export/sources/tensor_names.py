"""Hugging Face's names of a decoder's tensors: embedding, head, and the layer of a tensor."""

from __future__ import annotations

import re
from typing import Final

EMBEDDING_NAME: Final = "model.embed_tokens.weight"
HEAD_NAME: Final = "lm_head.weight"  # absent where the embedding is the head too

_LAYER_INDEX: Final = re.compile(r"\blayers\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """The layer's number in a tensor's name, None where it belongs to no layer."""
    match = _LAYER_INDEX.search(name)
    return None if match is None else int(match.group(1))
