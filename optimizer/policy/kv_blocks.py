"""How the server's KV cache is cut: blocks of some positions of one layer.

A session reserves whole blocks for its longest sequence when it is admitted. So does the plan that
counts the server's memory, and the simulator. Ours.
"""

from __future__ import annotations

from typing import Final, overload

import numpy as np
import numpy.typing as npt

KV_BLOCK_TOKENS: Final = 16


def num_blocks(num_tokens: int) -> int:
    """Blocks of one layer that hold `num_tokens` positions."""
    return -(-num_tokens // KV_BLOCK_TOKENS)


@overload
def reserved_tokens(num_tokens: int) -> int: ...
@overload
def reserved_tokens(num_tokens: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...
def reserved_tokens(
    num_tokens: int | npt.NDArray[np.float64],
) -> int | npt.NDArray[np.float64]:
    """Positions that a session of `num_tokens` reserves: whole blocks. Any shape."""
    return -(-num_tokens // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS


def tokens_in(room_tokens: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The longest session in room for `room_tokens` positions: whole blocks. Any shape."""
    return np.floor(room_tokens / KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS
