"""Reading and replacing the hidden state at the split inside a transformers model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from optimizer.errors import BuildError
from optimizer.families import family_of


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's decoder layers. Raises BuildError where they cannot be found."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise BuildError(f"{type(model).__name__}: no decoder layers to calibrate at")
    return layers


def embedding_shape(model: PreTrainedModel) -> tuple[int, int]:
    """Vocabulary size and hidden size, as the input embedding has them."""
    weight = model.get_input_embeddings().weight
    if not isinstance(weight, Tensor):
        raise BuildError(f"{type(model).__name__}: its input embedding has no weight")
    return int(weight.shape[0]), int(weight.shape[1])


def cache_argument(model: nn.Module) -> str:
    """What the KV cache is called in the forward call of this version of transformers."""
    parameters = inspect.signature(model.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def _entry(model: PreTrainedModel, split: int) -> nn.Module:
    """The module that the residual stream after `split` layers enters."""
    layers = decoder_layers(model)
    if not 0 <= split <= len(layers):
        raise BuildError(f"split {split} of a model with {len(layers)} layers")
    return layers[split] if split < len(layers) else final_norm(model)


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm after the last layer. Raises BuildError where it cannot be found."""
    family = family_of(model.config)
    module = getattr(model.get_decoder(), "norm" if family is None else family.final_norm, None)
    if not isinstance(module, nn.Module):
        raise BuildError(f"{type(model).__name__}: no final norm to calibrate at")
    return module


@contextmanager
def hidden_passed_through(
    model: PreTrainedModel, split: int, replace: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """While open, `replace` gets the hidden state [B, T, D] at the split and gives what goes on."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (replace(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": replace(kwargs["hidden_states"])}

    handle = _entry(model, split).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def front_skipped(model: PreTrainedModel, split: int) -> Iterator[None]:
    """While open, the first `split` layers hand their input on: only the back is computed."""

    def passes(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden_states

    front = list(decoder_layers(model))[:split]
    for layer in front:
        layer.forward = passes
    try:
        yield
    finally:
        for layer in front:
            del layer.forward


def back_logits(model: PreTrainedModel, split: int, hidden: Tensor, token_ids: Tensor) -> Tensor:
    """Logits [T, V] of one window from the hidden state [T, D] at the split."""
    with (
        torch.no_grad(),
        front_skipped(model, split),
        hidden_passed_through(model, split, lambda _: hidden[None]),
    ):
        logits: Tensor = model(token_ids[None], use_cache=False).logits
        return logits[0]


def hidden_and_logits(
    model: PreTrainedModel, split: int, token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden state [T, D] at the split and logits [T, V] of one window, nothing changed."""
    kept: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        kept.append(hidden[0].detach().clone())
        return hidden

    with torch.no_grad(), hidden_passed_through(model, split, keep):
        logits: Tensor = model(token_ids[None], use_cache=False).logits
    return kept[0], logits[0]
