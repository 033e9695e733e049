"""Whole fronts of any size with seeded weights: for memory and time, where values do not matter.

Rounding a front of 1.5 billion weights takes an hour. Here codes are drawn instead, so a front is
written at the disk's speed. All else is as `splitpoint build` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from torch import Tensor

from optimizer.artifacts.bundle import front_names
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import ModelRef, Partition, Plan, WeightBlocks
from optimizer.export.front import matrices
from optimizer.export.front.float_front import FloatFront
from optimizer.export.front.front_graph import front_at
from optimizer.export.front.rounding import RoundedMatrix
from optimizer.export.sources.config_geometry import geometry_of


class SeededModel:
    """A Llama of the given sizes, whose values are made as they are read. See ModelSource."""

    def __init__(self, **sizes: int) -> None:
        self.config: Any = transformers.AutoConfig.for_model(
            "llama", **sizes, max_position_embeddings=2048
        )
        self.config.architectures = ["LlamaForCausalLM"]
        self.geometry: ModelGeometry = geometry_of(self.config)
        self.place = "seeded"
        self._shapes = {
            name: value.shape for name, value in _skeleton(self.config).state_dict().items()
        }

    @property
    def tensor_names(self) -> frozenset[str]:
        """The tensors that the model has."""
        return frozenset(self._shapes)

    def quantized_matrix(self, name: str) -> None:
        """Nothing is on a grid."""

    def read(self, name: str, *, fits: torch.dtype = torch.float32) -> Tensor:
        """Norms around one, seeded embeddings, and matrices of ones that take no memory."""
        shape = self._shapes[name]
        generator = torch.Generator().manual_seed(len(name))
        if len(shape) == 1:
            return 1 + 0.1 * torch.randn(shape, generator=generator)
        if "embed" in name:
            return torch.randn(shape, generator=generator, dtype=torch.float32).half()
        return torch.ones(1).expand(shape)


def write_seeded_front(
    folder: Path,
    *,
    bits: int,
    blocks: WeightBlocks,
    max_tokens: int = 256,
    prefill_chunk: int = 64,
    streamed_layers: int = 0,
    **sizes: int,
) -> Plan:
    """Write a front of all layers, head and all, into `folder`; returns its plan.

    It is one file, or one a layer where some are streamed.
    """
    model = SeededModel(**sizes)
    geometry = model.geometry
    plan = Plan(
        model=ModelRef(id="seeded", sha256="0" * 64, geometry=geometry),
        partition=Partition(split=geometry.num_layers, front_bits=bits, back_bits=32),
        back_start=geometry.num_layers,
        kv_bits=32,
        level="lossless",
        max_tokens=max_tokens,
        prefill_chunk=prefill_chunk,
        weight_blocks=blocks,
        streamed_layers=streamed_layers,
    )
    source: Any = model
    front = FloatFront(source, geometry.num_layers)
    front.found.importance = _Inputs(geometry)
    folder.mkdir(parents=True, exist_ok=True)
    with _drawn():
        begin = 0
        for name, end in zip(front_names(plan), plan.segment_ends, strict=True):
            front_at(front, plan, folder / name, range(begin, end))
            begin = end
    (folder / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
    return plan


class _Inputs(dict[str, Any]):
    """Mean squares of a matrix's inputs, all alike."""

    def __init__(self, geometry: ModelGeometry) -> None:
        super().__init__()
        self._geometry = geometry

    def __missing__(self, node: str) -> Any:
        width = self._geometry.hidden_size
        if node.endswith("/down_proj/MatMul"):
            width = self._geometry.intermediate_size
        elif node.endswith("/o_proj/MatMul"):
            width = self._geometry.num_heads * self._geometry.device_head_dim
        return np.ones(width, dtype=np.float32)


@contextmanager
def _drawn() -> Iterator[None]:
    """Draw codes instead of rounding. Weights are the same in blocks of any size.

    Scales are alike, and give weights of about one over the root of the inputs. No two matrices are
    alike: ONNX Runtime keeps what is equal once.
    """
    seeds = count()

    def drawn(weight: Tensor, importance: Tensor, bits: int, block: int) -> RoundedMatrix:
        outputs, inputs = weight.shape
        per_row = inputs // block
        generator = torch.Generator().manual_seed(next(seeds))
        codes = torch.randint(
            0, 256, (outputs, inputs * bits // 8), generator=generator, dtype=torch.uint8
        )
        scale = 3.46 / (2**bits * inputs**0.5)
        return RoundedMatrix(
            bits=bits,
            block=block,
            codes=codes.view(outputs, per_row, -1),
            scales=torch.full((outputs, per_row), scale),
            zeros=torch.full((outputs, (per_row + 1) // 2), 0x88, dtype=torch.uint8)
            if bits == 4
            else None,
        )

    with patch.object(matrices, "round_rows", drawn):
        yield


def _skeleton(config: Any) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)
