"""transformers' own model over texts, with one layer's weights in memory at a time.

The model is made without memory. A layer gets its weights, in float32, when its turn comes and
loses them afterwards. Everything else (masks, positions, factors on the embedding) is transformers'
code as it is, so what the layers give is what the whole model gives.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from optimizer.errors import BuildError
from optimizer.export.sources.expected_tensors import make_skeleton
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.tensor_names import EMBEDDING_NAME

# Called after a layer: its number, and the hidden states float32 [B, T, D] before and after it.
OnLayer = Callable[[int, Tensor, Tensor], None]


class _Enough(Exception):  # noqa: N818 - it ends a forward pass early, it is no error
    """The last layer that was wanted has run."""


def run_layers(
    source: ModelSource, token_ids: Tensor, *, num_layers: int, on_layer: OnLayer
) -> None:
    """Run the first `num_layers` layers (one at least) over texts of one length, int64 [B, T].

    Raises BuildError where transformers' model cannot be run so, and what `on_layer` raises.
    """
    model = make_skeleton(source.config, str(source.place))
    model.set_attn_implementation("eager")  # the plainest: soft caps and sinks spelled out
    model.eval()
    decoder: Any = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    decoder.rotary_emb = type(decoder.rotary_emb)(model.config)
    ids = _use_rows(decoder.embed_tokens, source, token_ids)

    def load(module: nn.Module, args: Any, kwargs: Any) -> None:
        index = layers.index(module)
        for name, parameter in list(module.named_parameters()):
            values = source.read(f"{prefix}.layers.{index}.{name}").float()
            _set(module, name, values.view(parameter.shape))

    def drop(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        index = layers.index(module)
        for name, parameter in list(module.named_parameters()):
            _set(module, name, parameter.to("meta"))
        entered = args[0] if args else kwargs["hidden_states"]
        on_layer(index, entered, output[0] if isinstance(output, tuple) else output)
        if index + 1 == num_layers:
            raise _Enough

    layers = list(decoder.layers)
    with ExitStack() as hooks, torch.no_grad():
        for layer in layers[:num_layers]:
            hooks.callback(layer.register_forward_pre_hook(load, with_kwargs=True).remove)
            hooks.callback(layer.register_forward_hook(drop, with_kwargs=True).remove)
        try:
            decoder(ids, use_cache=False)
        except _Enough:
            return
    raise BuildError(f"{type(model).__name__}: its layers cannot be run one by one")


def _use_rows(embedding: Any, source: ModelSource, token_ids: Tensor) -> Tensor:
    """Give the embedding the text's rows alone; returns the text in these rows' numbers."""
    used: Tensor
    ids: Tensor
    used, ids = torch.unique(token_ids, return_inverse=True)
    rows = source.read(EMBEDDING_NAME)[used].float()
    embedding.weight = nn.Parameter(rows, requires_grad=False)
    for name, buffer in list(embedding.named_buffers()):
        if buffer.is_meta:  # Gemma's factor
            value = getattr(embedding, f"scalar_{name}")
            setattr(embedding, name, torch.tensor(value, dtype=torch.float32))
    return ids


def _set(module: nn.Module, name: str, values: Tensor) -> None:
    parent, _, attribute = name.rpartition(".")
    owner = module.get_submodule(parent)
    setattr(owner, attribute, nn.Parameter(values, requires_grad=False))
