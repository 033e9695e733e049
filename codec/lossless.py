"""The lossless level: float32 rows, bit for bit."""

import numpy as np

from codec.errors import FrameError
from codec.rows import Rows, TokenIds


def encode_lossless(rows: Rows, token_ids: TokenIds) -> bytes:
    """rows: [T, D] float32. Returns 4 T D bytes, little-endian, row by row."""
    return rows.astype("<f4", copy=False).tobytes()


def decode_lossless(payload: bytes, num_rows: int, hidden_size: int, token_ids: TokenIds) -> Rows:
    """The inverse, [num_rows, hidden_size] float32. Raises FrameError on a wrong length."""
    if len(payload) != 4 * num_rows * hidden_size:
        raise FrameError(
            f"lossless payload of {len(payload)} bytes for {num_rows} rows of {hidden_size}"
        )
    return np.frombuffer(payload, dtype="<f4").astype(np.float32).reshape(num_rows, hidden_size)
