"""A servable bundle of a tiny model, and a front made of transformers to talk to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from optimizer.artifacts.bundle import write_manifest
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from tests.tiny_models import make_tiny_model

MODEL_SHA256 = "ab" * 32


def save_back(model: torch.nn.Module, folder: Path, first_layer: int = 0) -> None:
    """`config.json` and the weights of the back, the way `splitpoint build` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.config
    config.save_pretrained(folder)
    kept = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[1] == "embed_tokens" or (parts[1] == "layers" and int(parts[2]) < first_layer):
            continue
        kept[name] = tensor.detach().clone().contiguous()
    save_file(kept, folder / "back-00001.safetensors")


def quantized_back(folder: Path) -> None:
    """Give the weights that `save_back` wrote 8 bits, each output its scale."""
    path = folder / "back-00001.safetensors"
    stored = {}
    for name, tensor in load_file(path).items():
        if tensor.ndim == 2:
            scale = tensor.abs().amax(dim=1) / 127
            stored[f"{name}.int8"] = torch.round(tensor / scale[:, None]).to(torch.int8)
            stored[f"{name}.scale"] = scale
        else:
            stored[name] = tensor
    save_file(stored, path)


def geometry_of(config: Any) -> ModelGeometry:
    return ModelGeometry(
        architecture=config.architectures[0] if config.architectures else "LlamaForCausalLM",
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        tied_embeddings=bool(config.tie_word_embeddings),
    )


def make_bundle(
    root: Path,
    name: str = "llama",
    *,
    back_start: int = 0,
    split: int = 2,
    sha256: str = MODEL_SHA256,
    folder: str = "bundle",
) -> Any:
    """Write a bundle without an edge part to `root / folder`; returns the whole model."""
    model = make_tiny_model(name, root / "source")
    bundle = root / folder
    save_back(model, bundle / "cloud", back_start)
    plan = Plan(
        model=ModelRef(id=f"tiny-{name}", sha256=sha256, geometry=geometry_of(model.config)),
        partition=Partition(split=split, front_bits=32, back_bits=32),
        back_start=back_start,
        kv_bits=32,
        level="lossless",
        max_tokens=200,
        prefill_chunk=16,
    )
    (bundle / "plan.yaml").write_text(plan.to_yaml())
    write_manifest(bundle)
    return model


class WholeModelFront:
    """Rows entering layer `split`, read off the whole model by recomputing from the start."""

    def __init__(self, model: Any, split: int) -> None:
        self._model = model
        self._split = split

    def rows(self, token_ids: list[int], first: int) -> npt.NDArray[np.float32]:
        """float32 [T, D] of positions `first` on, of the sequence `token_ids`."""
        with torch.inference_mode():
            out = self._model.model(
                torch.tensor([token_ids]), output_hidden_states=True, use_cache=False
            )
        return out.hidden_states[self._split][0, first:].numpy()

    def greedy(self, token_ids: list[int], count: int) -> list[int]:
        """What the whole model continues with, token by token."""
        tokens = list(token_ids)
        with torch.inference_mode():
            for _ in range(count):
                logits = self._model(torch.tensor([tokens]), use_cache=False).logits
                tokens.append(int(logits[0, -1].argmax()))
        return tokens[len(token_ids) :]
