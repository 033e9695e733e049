"""The fields' own ways to send a hidden state, as small coders beside ours.

Each has a `name` and `send(rows, token_ids) -> (rows as they arrive, bytes)`, what
`optimizer.export.certify.certificate.measure` wants. Bytes count everything the method must send; a
5-byte header, as our frames have, is added to each so that no method wins by having none.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

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
    "integers row (Atom-like)",
    "integers rotated (QuaRot-like)",
    "top-k + integers (SLICER-like)",
    "Fourier (FourierCompress-like)",
]


@dataclass(frozen=True, slots=True)
class Baseline:
    """One method at one setting.

    bits: of an integer, where the method leaves them open. share: of a row's values sent apart
    (top-k), or of its spectrum kept (Fourier).
    """

    method: Method
    bits: int = 8
    share: float = 0.0

    @property
    def name(self) -> str:
        """The method and what is set."""
        match self.method:
            case "integers row (Atom-like)" | "integers rotated (QuaRot-like)":
                return self.method.replace("integers", f"int{self.bits}")
            case "top-k + integers (SLICER-like)":
                kept = f"top {100 * self.share:g} % + int{self.bits}"
                return self.method.replace("top-k + integers", kept)
            case "Fourier (FourierCompress-like)":
                return self.method.replace("Fourier", f"Fourier {100 * self.share:g} %", 1)
            case _:
                return self.method

    def send(self, rows: F32, token_ids: Ids) -> tuple[F32, int]:
        """rows [T, D]: what arrives, and the bytes of one message."""
        size = rows.shape[1]
        back: npt.NDArray[Any]
        bits: float
        match self.method:
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
            case "integers row (Atom-like)":
                back, bits = _scaled(rows, self.bits), self.bits * size + 16.0
            case "integers rotated (QuaRot-like)":
                rotation = _random_rotation(size)
                back, bits = (
                    _scaled(rows @ rotation, self.bits) @ rotation.T,
                    self.bits * size + 16.0,
                )
            case "top-k + integers (SLICER-like)":
                kept = max(1, round(self.share * size))
                place = np.argpartition(np.abs(rows), size - kept, axis=1)[:, -kept:]
                rest = rows.copy()
                np.put_along_axis(rest, place, 0, axis=1)
                back = _scaled(rest, self.bits)
                exact = np.take_along_axis(rows, place, axis=1)
                np.put_along_axis(back, place, exact, axis=1)
                bits = self.bits * size + 16 + kept * (32 + np.ceil(np.log2(size)))
            case "Fourier (FourierCompress-like)":
                # The low end of the row's spectrum, each kept coefficient two fp16 numbers.
                spectrum = np.fft.rfft(rows, axis=1)
                keep = round(self.share * size / 2)
                spectrum[:, keep:] = 0
                back, bits = np.fft.irfft(spectrum, size, axis=1), 32.0 * keep
        return back.astype(np.float32), HEADER_BYTES + int(np.ceil(bits / 8)) * len(rows)


ALL: tuple[Baseline, ...] = (
    Baseline("fp16"),
    Baseline("int8 row (Mesh-LLM)"),
    Baseline("int8 blockwise (Petals)"),
    Baseline("q8_0 (distributed-llama)"),
    Baseline("integers row (Atom-like)", bits=4),
    *(Baseline("integers rotated (QuaRot-like)", bits=bits) for bits in (3, 4, 5)),
    *(
        Baseline("top-k + integers (SLICER-like)", bits=bits, share=share)
        for bits, share in ((4, 0.02), (4, 0.05), (5, 0.02))
    ),
    *(Baseline("Fourier (FourierCompress-like)", share=share) for share in (0.25, 0.5, 0.9)),
)


def _scaled(rows: F32, bits: int) -> F32:
    """Symmetric integers under the row's largest value."""
    top = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-30) / top
    return np.rint(rows / scale) * scale


def _grouped(rows: F32, bits: int, group: int) -> F32:
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % group)))
    back = _scaled(padded.reshape(-1, group), bits).reshape(padded.shape)
    return back[:, : rows.shape[1]]


@cache
def _random_rotation(size: int) -> F32:
    rng = np.random.default_rng(0)
    return np.linalg.qr(rng.standard_normal((size, size)))[0].astype(np.float32)
