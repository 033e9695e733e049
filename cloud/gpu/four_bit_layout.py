"""How 4-bit weights lie in memory: see `cloud.gpu.four_bit`. Loads no Triton."""

from __future__ import annotations

from typing import Final

import torch

GROUP: Final = 64  # weights of a row that share a scale
BLOCK: Final = 2 * GROUP
PARAMETER_TYPE: Final = torch.bfloat16  # of scale and low


def num_blocks(width: int) -> int:
    """Blocks of a row of `width` weights."""
    return -(-width // BLOCK)
