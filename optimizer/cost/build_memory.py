"""The memory that a build takes, predicted from a model's shape before any weight is read.

A model whose layers fit in `WHOLE_BYTES` keeps them while it is calibrated. Of a larger one, one or
two layers are in memory at a time, and arrays of all calibration rows are what counts: their number
grows with the width. The peak is that of the largest stage. Source: ours, held against measured
builds (docs/results/builds.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from codec.levels.split_model import MOST_PREDICTION_BYTES
from optimizer.cost.weights import FP32_BYTES

# Float32 layers up to this size stay loaded: they are a share of the room that any build has.
WHOLE_BYTES: Final = 768 << 20
CALIBRATION_TOKENS: Final = 8192  # at least
TOKENS_A_CHANNEL: Final = 4  # fewer give no covariance of the channels

# The process with torch, transformers and a tokenizer.
_PROCESS_BYTES: Final = 480 << 20
# The same with a small model's layers, its KV while it writes text, and the rows of a split.
_SMALL_BYTES: Final = 3 << 29
_LAYERS_HELD: Final = 2
_FP64_BYTES: Final = 8
# Arrays that exist together while a split is fitted: of all rows, and of the width's square.
_ROW_ARRAYS: Final = 6
_SQUARE_ARRAYS: Final = 11
# While levels are measured: rows of the split, sets of the held-out rows, and rows of the head's
# matrix that are widened at a time.
_FITTED_ARRAYS: Final = 3
_HELD_OUT_ROWS: Final = 6 * 4 * 512
_HEAD_ROWS: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildMemory:
    """Peak bytes of one build. stages: of each stage that may be the largest."""

    stages: Mapping[str, float]

    @property
    def total_bytes(self) -> float:
        """The peak."""
        return max(self.stages.values())

    @property
    def largest(self) -> str:
        """The stage that has it."""
        return max(self.stages, key=self.stages.__getitem__)


def build_memory(
    layer_parameters: Sequence[int],
    *,
    embedding_bytes: float,
    head_bytes: float,
    hidden_size: int,
    vocab_size: int,
) -> BuildMemory:
    """The peak of a build, with calibration, of a model whose layers have so many parameters.

    embedding_bytes, head_bytes: as they are stored; 0 for a head that is the embedding.
    """
    largest = sorted(layer_parameters)[-_LAYERS_HELD:]
    layer_bytes = FP32_BYTES * sum(largest)
    if FP32_BYTES * sum(layer_parameters) <= WHOLE_BYTES:
        total = _SMALL_BYTES + layer_bytes + embedding_bytes + head_bytes
        return BuildMemory(stages={"calibration": total})
    rows = max(CALIBRATION_TOKENS, TOKENS_A_CHANNEL * hidden_size)
    row_bytes = FP32_BYTES * rows * hidden_size
    listed = min(vocab_size, MOST_PREDICTION_BYTES // hidden_size)
    codes_bytes = vocab_size * hidden_size
    return BuildMemory(
        stages={
            "the front": _PROCESS_BYTES + max(layer_bytes, embedding_bytes + codes_bytes),
            "fitting the split": _PROCESS_BYTES
            + _ROW_ARRAYS * row_bytes
            + FP32_BYTES * listed * hidden_size
            + _SQUARE_ARRAYS * _FP64_BYTES * hidden_size**2,
            "measuring levels": _PROCESS_BYTES
            + (head_bytes or embedding_bytes)
            + _FITTED_ARRAYS * row_bytes
            + FP32_BYTES * (listed + _HELD_OUT_ROWS + _HEAD_ROWS) * hidden_size
            + layer_bytes / _LAYERS_HELD,
        }
    )
