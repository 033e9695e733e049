"""A transformers model without weights, and how a layer of it is called."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optimizer.errors import ModelError
from optimizer.export.layers.tensor_source import TensorSource


def called(module: nn.Module, rows: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """A layer's output, which older versions of transformers wrap in a tuple."""
    out = module(rows, *args, **kwargs)
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def skeleton_of(source: TensorSource, attention: str | None) -> Any:
    """The model without weights. What it computes itself (rotary frequencies) has its values."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(source.config)
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=attention
            )
    except Exception as error:  # whatever the layers raise
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{source.place}: the config's sizes make no model ({reason})") from error
    return model.eval()
