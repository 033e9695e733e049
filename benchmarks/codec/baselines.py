"""The fields' own ways to send a hidden state, as small coders beside ours.

Each has a `name` and `send(rows, token_ids) -> (rows as they arrive, bytes)`, what
`optimizer.build.certify.measure` wants. Bytes count everything the method must send; a 5-byte
header, as our frames have, is added to each so that no method wins by having none.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
HEADER_BYTES = 5

Method = Literal[
    "fp16",
    "int8 row (Mesh-LLM)",
    "int8 blockwise (Petals)",
    "q8_0 (distributed-llama)",
    "int4 row (Atom-like)",
    "int4 rotated (QuaRot-like)",
    "top-k + int4 (SLICER-like)",
    "Fourier (FourierCompress-like)",
]


@dataclass(frozen=True, slots=True)
class Baseline:
    """One method by name."""

    name: Method

    def send(self, rows: F32, token_ids: Ids) -> tuple[F32, int]:
        """rows [T, D]: what arrives, and the bytes of one message."""
        size = rows.shape[1]
        match self.name:
            case "fp16":
                back, bits = rows.clip(-65504, 65504).astype(np.float16), 16.0 * size
            case "int8 row (Mesh-LLM)":
                back, bits = _scaled(rows, 8), 8.0 * size + 32
            case "int8 blockwise (Petals)":
                # hivemind's blocks have 4,096 values; a shorter row is one block.
                block = min(size, 4096)
                back, bits = _grouped(rows, 8, block), 8.0 * size + 32 * -(-size // block)
            case "q8_0 (distributed-llama)":
                back, bits = _grouped(rows, 8, 32), 8.0 * size + 16 * -(-size // 32)
            case "int4 row (Atom-like)":
                back, bits = _scaled(rows, 4), 4.0 * size + 16
            case "int4 rotated (QuaRot-like)":
                turn = _random_rotation(size)
                back, bits = _scaled(rows @ turn, 4) @ turn.T, 4.0 * size + 16
            case "top-k + int4 (SLICER-like)":
                kept = max(1, size // 50)
                place = np.argpartition(np.abs(rows), size - kept, axis=1)[:, -kept:]
                rest = rows.copy()
                np.put_along_axis(rest, place, 0, axis=1)
                back = _scaled(rest, 4)
                exact = np.take_along_axis(rows, place, axis=1)
                np.put_along_axis(back, place, exact, axis=1)
                bits = 4.0 * size + 16 + kept * (32 + np.ceil(np.log2(size)))
            case "Fourier (FourierCompress-like)":
                # Half of the row's spectrum, each kept coefficient two fp16 numbers.
                spectrum = np.fft.rfft(rows, axis=1)
                keep = size // 4
                spectrum[:, keep:] = 0
                back, bits = np.fft.irfft(spectrum, size, axis=1), 32.0 * keep
        return back.astype(np.float32), HEADER_BYTES + int(np.ceil(bits / 8)) * len(rows)


ALL: tuple[Baseline, ...] = tuple(Baseline(name) for name in Method.__args__)


def _scaled(rows: F32, bits: int) -> F32:
    """Symmetric integers under the row's largest value."""
    top = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-30) / top
    return np.rint(rows / scale) * scale


def _grouped(rows: F32, bits: int, group: int) -> F32:
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % group)))
    back = _scaled(padded.reshape(-1, group), bits).reshape(padded.shape)
    return back[:, : rows.shape[1]]


def _random_rotation(size: int) -> F32:
    rng = np.random.default_rng(0)
    return np.linalg.qr(rng.standard_normal((size, size)))[0].astype(np.float32)
