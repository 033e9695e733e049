"""The memory that a build takes, predicted from a model's shape before any weight is read.

A build holds two layers in float32 at once (the one it computes and the one it reads), embedding
and head as they are stored, and the process with its activations. Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from optimizer.cost.weights import FP32_BYTES

# The process with torch and transformers, and the activations between two layers.
PROCESS_BYTES: Final = 3 << 29
LAYERS_HELD: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildMemory:
    """Peak bytes of one build, by part."""

    layer_bytes: float
    embedding_bytes: float
    head_bytes: float
    process_bytes: float = PROCESS_BYTES

    @property
    def total_bytes(self) -> float:
        """All parts together."""
        return self.layer_bytes + self.embedding_bytes + self.head_bytes + self.process_bytes


def build_memory(
    layer_parameters: Sequence[int], *, embedding_bytes: float, head_bytes: float
) -> BuildMemory:
    """The peak of a build of a model whose layers have so many parameters.

    embedding_bytes, head_bytes: as they are stored; 0 for a head that is the embedding.
    """
    largest = sorted(layer_parameters)[-LAYERS_HELD:]
    return BuildMemory(
        layer_bytes=FP32_BYTES * sum(largest),
        embedding_bytes=embedding_bytes,
        head_bytes=head_bytes,
    )
