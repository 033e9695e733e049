"""TAB-Q: threshold splitting, then per token the smallest width that keeps the error in bounds.

The large values of each row (token) are sent apart (`codec.levels.threshold`). The dense rest is
rounded to integer codes with the row's own scale. The scale is the largest on a grid of eighth
octaves whose error stays within delta of the dense part's L2 norm. So the code width, which follows
from the largest code, is the smallest that does; it is held between min_bits and max_bits.
The codes are bit-packed at that width, or entropy-coded. The entropy stage knows each channel's
usual mean and spread from calibration: it codes q - round(mean / step) under the family of
spread / step, moved by one offset a row. That changes no code, only its bits.

Source: Sung et al. 2025, arXiv:2511.04002 (threshold splitting, token-wise adaptive width);
entropy stage: the same authors' arXiv:2511.11664 (rANS over the codes). The paper's stopping rule
was not available: "largest grid scale within delta" is ours, because at equal distortion it never
spends more bits than stepping through whole widths.

Payload: sparse part; per row one byte of scale (0: an all-zero row) and one byte of width, or of
offset + 128; codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from codec.arrays import F32, I32, I64, U8
from codec.chunks import by_chunks
from codec.entropy.bits import pack, packed_bytes, unpack
from codec.entropy.integers import (
    FAMILY_OF_ONE,
    NUM_FAMILIES,
    Families,
    decode_codes,
    encode_codes,
)
from codec.errors import FrameError
from codec.levels.threshold import decode_sparse, encode_sparse, mask_above, mask_top_k
from codec.rows import Encoded, RowMask, Rows, TokenIds

TABQ_NUMBER: Final = 1  # of the codec's kind, in frames
_SCALE_ZERO: Final = 128  # scale byte of a step of 1
_OFFSET_ZERO: Final = 128  # offset byte of a row as loud as usual
_MAX_EXPECTED: Final = 1 << 12  # beyond what max_bits allows a code, so no row pays much for it
# Eighth octaves as literals and exact powers of two: the same float on every machine.
_EIGHTHS: Final = (
    1.0,
    1.0905077,
    1.1892071,
    1.2968396,
    1.4142135,
    1.5422108,
    1.6817929,
    1.8340081,
)
STEPS: Final[F32] = np.array(
    [0.0]
    + [_EIGHTHS[(i - _SCALE_ZERO) % 8] * 2.0 ** ((i - _SCALE_ZERO) // 8) for i in range(1, 256)],
    dtype=np.float32,
)
# Rounding noise of a uniform step is step / sqrt(12); begin a little above and walk down.
_TRIES: Final = range(3, -8, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TabqCodec:
    """One TAB-Q level.

    delta: relative L2 error allowed in the dense part. top_k: outliers of each row;
    tau [D] or None: a calibrated threshold per channel instead. families: None means bit-packed.
    centre, eighths: [D], mean of each channel's dense part, and the logarithm of its spread in
    eighth octaves; what the entropy stage expects.
    """

    hidden_size: int
    delta: float
    top_k: int = 4
    tau: F32 | None = None
    min_bits: int = 2
    max_bits: int = 12
    families: Families | None = None
    centre: F32 | None = None
    eighths: I32 | None = None
    kind: int = TABQ_NUMBER

    def encode(self, rows: Rows, token_ids: TokenIds) -> Encoded:
        """See RowCodec. Declines rows whose scale does not fit the scale byte."""
        mask = mask_top_k(rows, self.top_k) if self.tau is None else mask_above(rows, self.tau)

        def quantize(part: slice) -> tuple[U8, RowMask, I32]:
            dense = np.where(mask[part], np.float32(0), rows[part])
            scales, declined = self.choose_scales(dense)
            dense[declined] = 0
            return scales, declined, _round(dense, scales)

        scales, declined, codes = (
            np.concatenate(parts) for parts in zip(*by_chunks(quantize, len(rows)), strict=True)
        )
        if declined.any():
            taken = ~declined
            rows, mask, codes, scales = rows[taken], mask[taken], codes[taken], scales[taken]
        sparse = encode_sparse(rows, mask)
        if self.families is None:
            widths = _widths(codes)
            side = np.stack([scales, widths], axis=1).astype(np.uint8)
            offset = codes + (1 << widths[:, None] >> 1)  # [T, D], not negative
            per_code = np.repeat(widths, self.hidden_size)
            packed = pack(offset.reshape(-1).astype(np.int64), per_code)
            return Encoded(payload=sparse + side.tobytes() + packed, declined=declined)
        surprise = codes - self.expected(scales)
        surprise[mask] = 0
        offsets = self.choose_offsets(scales, surprise)
        side = np.stack([scales, (offsets + _OFFSET_ZERO).astype(np.uint8)], axis=1)
        family = self.family_of(scales, offsets)
        coded = encode_codes(self.families, family.reshape(-1), surprise.reshape(-1))
        return Encoded(payload=sparse + side.tobytes() + coded, declined=declined)

    def decode(self, payload: bytes, num_rows: int, token_ids: TokenIds) -> Rows:
        """See RowCodec."""
        data = memoryview(payload)
        sparse = decode_sparse(data, num_rows, self.hidden_size)
        at = sparse.num_bytes
        if len(data) < at + 2 * num_rows:
            raise FrameError("row scales end too early")
        side = np.frombuffer(data, np.uint8, count=2 * num_rows, offset=at).reshape(-1, 2)
        at += 2 * num_rows
        scales, second = side[:, 0], side[:, 1]
        if self.families is None:
            if (second > 31).any():
                raise FrameError("code width beyond 31 bits")
            widths = second.astype(np.int64)
            per_code = np.repeat(widths, self.hidden_size)
            flat = unpack(data[at:], per_code)
            at += packed_bytes(per_code)
            codes = (flat - (1 << per_code >> 1)).reshape(num_rows, self.hidden_size)
        else:
            family = self.family_of(scales, second.astype(np.int32) - _OFFSET_ZERO)
            found, used = decode_codes(self.families, family.reshape(-1), data[at:])
            at += used
            codes = found.reshape(num_rows, self.hidden_size) + self.expected(scales)
        if at != len(data):
            raise FrameError(f"{len(data) - at} bytes left over after the codes")
        with np.errstate(over="ignore"):
            rows = codes.astype(np.float32) * STEPS[scales][:, None]  # [T, D]
        rows[sparse.rows, sparse.columns] = sparse.values
        return rows

    def expected(self, scales: U8) -> I32:
        """Code [T, D] at which each channel's mean lies; 0 in all-zero rows."""
        if self.centre is None:
            return np.zeros((len(scales), self.hidden_size), dtype=np.int32)
        step = np.where(scales > 0, STEPS[scales], np.float32(np.inf))[:, None]
        at = np.clip(np.rint(self.centre / step), -_MAX_EXPECTED, _MAX_EXPECTED)
        return np.asarray(at, dtype=np.int32)

    def family_of(self, scales: U8, offsets: I32) -> U8:
        """Family [T, D] of channels whose spread is 2^(eighths / 8), at these scales."""
        spread = np.int32(0) if self.eighths is None else self.eighths
        relative = (spread - (scales.astype(np.int32)[:, None] - _SCALE_ZERO)) >> 1
        family = relative + FAMILY_OF_ONE + offsets[:, None]
        shape = (len(scales), self.hidden_size)
        clipped = np.clip(family, 0, NUM_FAMILIES - 1).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(clipped, shape))

    def choose_offsets(self, scales: U8, surprise: I32) -> I32:
        """Quarter octaves [T] by which each row is louder than its channels usually are."""
        spread = np.int32(0) if self.eighths is None else self.eighths
        usual = np.exp2((spread - (scales.astype(np.int32)[:, None] - _SCALE_ZERO)) / 8)
        # Channels below a step say little; their codes are mostly zero.
        heard = np.maximum(usual, 0.5).astype(np.float32)
        loud = (np.abs(surprise) / heard).mean(axis=1) / 0.8
        quarters = np.rint(4 * np.log2(np.maximum(loud, 1e-30)))
        return np.asarray(np.clip(quarters, -128, 127), dtype=np.int32)

    def choose_scales(self, dense: Rows) -> tuple[U8, RowMask]:
        """Scale byte of each row of [T, D], and the rows whose scale falls outside the grid."""
        norm = np.sqrt(np.einsum("td,td->t", dense, dense, dtype=np.float64))
        guess = self.delta * np.sqrt(12 / self.hidden_size) * norm
        start = np.floor(8 * np.log2(np.maximum(guess, 1e-300))) + _SCALE_ZERO
        live = norm > 0
        largest = np.abs(dense).max(axis=1, initial=0).astype(np.float64)
        # The step at which the largest code just fills max_bits, or min_bits.
        with np.errstate(divide="ignore"):
            grid = 8 * np.log2(largest) + _SCALE_ZERO
        floor = np.ceil(grid - 8 * np.log2(2 ** (self.max_bits - 1) - 1))
        ceiling = np.floor(grid - 8 * np.log2(max(1, 2 ** (self.min_bits - 1) - 1)))
        declined = live & ((start < 1 - min(_TRIES)) | (start > 250) | (floor > 250))
        scales = np.zeros(len(dense), dtype=np.uint8)
        undecided = np.flatnonzero(live & ~declined)
        for extra in _TRIES:
            if len(undecided) == 0:
                break
            trial = np.clip(np.clip(start + extra, floor, ceiling)[undecided], 1, 255)
            part = dense if len(undecided) == len(dense) else dense[undecided]
            step = STEPS[trial.astype(np.uint8)][:, None]
            error = part / step
            error -= np.rint(error)
            error *= error
            worst = np.sqrt(error.sum(axis=1)) * step[:, 0]
            good = worst <= self.delta * norm[undecided]
            scales[undecided] = trial.astype(np.uint8)
            undecided = undecided[~good]
        return scales, declined


def _round(dense: Rows, scales: U8) -> I32:
    step = np.where(scales > 0, STEPS[scales], np.float32(1))[:, None]
    return np.rint(dense / step).astype(np.int32)


def _widths(codes: I32) -> I64:
    """Bits of a signed code with room for the largest magnitude of each row; 0 for zero rows."""
    largest = np.abs(codes).max(axis=1, initial=0).astype(np.int64)
    return np.where(largest > 0, np.floor(np.log2(np.maximum(largest, 1))).astype(np.int64) + 2, 0)
