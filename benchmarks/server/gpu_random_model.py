"""A back of the Llama shape with random weights, made on the device: nothing is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.server.gpu_machine import CudaMachine
from cloud.attention.transformers_interface import ATTENTION_NAME
from cloud.engine.back_weights import BackModel
from cloud.engine.module_weights import narrow_linear


def random_model(
    machine: CudaMachine, config: LlamaConfig, first_layer: int, kind: str = "bf16"
) -> BackModel:
    """The back with random weights, made on the device. kind: of `weight_types.WEIGHT_TYPES`."""
    with torch.device("meta"):
        whole: Any = AutoModelForCausalLM.from_config(
            config, attn_implementation=ATTENTION_NAME, dtype=machine.half
        )
    whole.eval()
    decoder = whole.get_decoder()
    first, device = first_layer, machine.device
    layers = tuple(_filled(layer, kind, device) for layer in decoder.layers[first:])
    return BackModel(
        config=whole.config,
        first_layer=first,
        layers=layers,
        norm=_filled(decoder.norm, kind, device),
        head=_filled(nn.ModuleDict({"head": whole.lm_head}), kind, device)["head"],
        rotary=type(decoder.rotary_emb)(whole.config).to(device),
        logits_divisor=None,
        final_softcap=None,
        embedding=None,
        dtype=machine.half,
        device=device,
    )


def _filled(module: Any, kind: str, device: torch.device) -> Any:
    module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if "norm" in name or parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    if kind != "bf16":
        for name, child in list(module.named_modules()):
            if isinstance(child, nn.Linear):
                parent, _, attribute = name.rpartition(".")
                narrow = narrow_linear(child.weight.detach(), kind, None)
                setattr(module.get_submodule(parent), attribute, narrow)
    return module
