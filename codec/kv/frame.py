"""Frames of keys and values: of some tokens, at the layers that move to the other side.

A frame has the header and the check of `codec.frame`. Its check is seeded with the layers and the
shape of their heads, so a frame of other layers or of another model is refused. Frames do not
depend on each other, and need no tables: a frame of a lossy level brings its own calibration
(`codec.kv.quantized`).

The lossless level codes each head's keys, and each head's values, of each token as one row of
`codec.levels.lossless`, since their exponents lie close to each other.

Source: ours. Shipping keys and values when the split moves is I_kv of arXiv:2511.04002.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from codec.errors import EncodeError, FrameError
from codec.frame import max_payload_bytes, pack_frame, unpack_frame
from codec.kv.quantized import decode_quantized, encode_quantized
from codec.levels.lossless import decode_lossless, encode_lossless

LOSSLESS: Final = "lossless"
# What a level takes, in bits an element, headers and calibration included: measured on SmolLM2's
# layers 5 to 9 (docs/results/moving-split.md).
KV_BITS: Final[Mapping[str, float]] = {LOSSLESS: 26.8, "kv8": 7.4, "kv4": 3.4}
# A frame has so many tokens at most, and as many numbers as hidden states of MAX_ROWS tokens: a
# server takes messages of twice their size. One token fits always.
KV_FRAME_TOKENS: Final = 512
MAX_ROWS: Final = 1024
_MAX_ELEMENTS: Final = 8 << 20
_LOSSLESS_KIND: Final = 0
_QUANTIZED_KIND: Final = 1
_CODE_BITS: Final[Mapping[str, int]] = {"kv8": 8, "kv4": 4}

KeysValues: TypeAlias = npt.NDArray[np.float32]  # [T, layers, 2, G, d], keys before values


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFrames:
    """Encodes and decodes keys and values of the layers `layers`, `num_heads` heads of `head_dim`.

    hidden_size: the model's. Both sides make it from what they know, and send nothing of it.
    """

    hidden_size: int
    layers: range
    num_heads: int
    head_dim: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one token: layers, keys and values, G, d."""
        return (len(self.layers), 2, self.num_heads, self.head_dim)

    @property
    def num_elements(self) -> int:
        """Of one token."""
        return math.prod(self.shape)

    @property
    def max_tokens(self) -> int:
        """Most tokens of one frame."""
        most = min(MAX_ROWS * self.hidden_size, _MAX_ELEMENTS)
        return max(1, min(KV_FRAME_TOKENS, most // self.num_elements))

    def max_bytes(self, num_tokens: int) -> int:
        """Most bytes that an honest frame of so many tokens takes."""
        return max_payload_bytes(num_tokens, self.num_elements)

    def encode(self, level: str, kv: KeysValues) -> bytes:
        """One frame of float32 [T, layers, 2, G, d] at a level of `KV_BITS`.

        Raises EncodeError for another level, shape or type, for too many tokens or none, NaN
        or infinity.
        """
        if level not in KV_BITS:
            raise EncodeError(f"no level {level!r} of keys and values: {', '.join(KV_BITS)}")
        if kv.dtype != np.float32 or kv.shape[1:] != self.shape or not len(kv):
            raise EncodeError(
                f"keys and values are {kv.dtype} {list(kv.shape)}, expected float32 "
                f"[T, {', '.join(map(str, self.shape))}]"
            )
        if len(kv) > self.max_tokens:
            raise EncodeError(f"{len(kv)} tokens in one kv frame, at most {self.max_tokens}")
        if not np.isfinite(kv).all():
            raise EncodeError("keys or values with NaN or infinity")
        if level == LOSSLESS:
            rows = np.ascontiguousarray(kv).reshape(-1, self.head_dim)
            kind, bits = _LOSSLESS_KIND, 0
            payload = encode_lossless(rows, np.zeros(len(rows), np.int64))
        else:
            kind, bits = _QUANTIZED_KIND, _CODE_BITS[level]
            payload = encode_quantized(kv, bits)
        return pack_frame(kind, bits, len(kv), payload, self._seed)

    def decode(self, frame: bytes, *, num_tokens: int) -> KeysValues:
        """The keys and values of a frame; FrameError, nothing else, on bad bytes.

        num_tokens: as the message around the frame says. Nothing larger is allocated.
        """
        if num_tokens > self.max_tokens:
            raise FrameError(f"kv frame of {num_tokens} tokens, at most {self.max_tokens}")
        if len(frame) > self.max_bytes(num_tokens):
            raise FrameError(f"kv frame of {len(frame)} bytes is too long for {num_tokens} tokens")
        parsed = unpack_frame(frame, self._seed)
        if parsed.num_rows != num_tokens:
            raise FrameError(f"kv frame holds {parsed.num_rows} tokens, expected {num_tokens}")
        if parsed.kind == _LOSSLESS_KIND and parsed.level_index == 0:
            num_rows = num_tokens * self.num_elements // self.head_dim
            ids = np.zeros(num_rows, np.int64)
            rows = decode_lossless(parsed.payload, num_rows, self.head_dim, ids)
            kv = rows.reshape(num_tokens, *self.shape)
        elif parsed.kind == _QUANTIZED_KIND and parsed.level_index in _CODE_BITS.values():
            kv = decode_quantized(parsed.payload, num_tokens, self.shape)
        else:
            raise FrameError(f"kv frame of kind {parsed.kind} at {parsed.level_index} bits")
        if not np.isfinite(kv).all():
            raise FrameError("kv frame decodes to NaN or infinity")
        return kv

    @property
    def _seed(self) -> int:
        agreed = (self.hidden_size, self.layers.start, self.layers.stop, *self.shape[2:])
        return zlib.crc32(f"kv:{agreed}".encode())
