"""The calibrated codec (ours): predict, rotate, one step for the layer, a model per component.

With x a row entering the split and t its input token, both sides know tables for:

    y = F (x - mean) - p(t)           F: the whitened eigenbasis, p: what the token alone predicts
    q = round(y / step)               the same step everywhere: F makes equal noise cost equal loss
    bits of q[c]                      model of the family base[c] + o, o one number per row

F = U' H^(1/2), where H is the second moment of the loss gradient at the split and U the
eigenvectors of the residual's covariance in that metric. A Gaussian source with a quadratic loss is
coded best this way (reverse water-filling, Cover & Thomas, section 10.3.3; transform coding: Goyal
2001, doi 10.1109/79.952802). The offset o lets a row be louder or quieter than the calibration
text. Values far outside their channel (massive activations) travel aside, as in
`codec.threshold`. p(t) is known to the receiver, so only the surprise travels.

Decoding is table look-ups on integers, then (q + centre) * step, and only then the inverse
rotation; nothing computed in floats feeds back into the entropy decoder, so bytes decode alike on
every machine.

Payload: per row one byte, offset + 8 in the low nibble, 0x10 when values travel aside; the sparse
part of those rows if there are any; the codes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codec.errors import FrameError, TablesError
from codec.frame import CodecKind
from codec.integers import (
    MAX_CODE,
    NUM_FAMILIES,
    PER_OCTAVE,
    REACH,
    SHIFTS,
    Families,
    decode_codes,
    encode_codes,
    family_of_scale,
)
from codec.rans_numpy import U8
from codec.rows import Encoded, RowMask, Rows, TokenIds, times
from codec.threshold import decode_sparse, encode_sparse

F32 = npt.NDArray[np.float32]

OFFSETS = (-8, 7)
_ASIDE = 0x10
# A row this far from the model is not worth its tables; the ladder's safe level takes it.
_LOUDEST = OFFSETS[1] + 4  # quarter octaves, before clipping
_MOST_ESCAPES = 1 / 8  # share of a row's components


_REACH_OF = (REACH + 1 << SHIFTS.astype(np.int64)) - 1  # largest code without escape, by family


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitModel:
    """What one split's rows look like; shared by all calibrated levels of a ladder.

    mean, tau, sigma: [D]; tau bounds |x - mean| per channel, sigma is the rms of each component of
    y. forward, inverse: [N, B, B] with N B = D: block n takes channels order[n B:(n+1) B].
    order: [D] int32. token_ids: [V'] int32 sorted; token_codes: [V', D] int8; token_scale: [D]:
    p(t) = token_codes * token_scale, zero for a token that is not listed.
    """

    mean: F32
    tau: F32
    sigma: F32
    forward: F32
    inverse: F32
    order: npt.NDArray[np.int32]
    token_ids: npt.NDArray[np.int32]
    token_codes: npt.NDArray[np.int8]
    token_scale: F32

    def check(self, hidden_size: int) -> None:
        """Raises TablesError unless every shape, and the order, fits hidden_size."""
        blocks, size = self.forward.shape[0], self.forward.shape[-1]
        shapes_hold = (
            all(a.shape == (hidden_size,) for a in (self.mean, self.tau, self.sigma, self.order))
            and self.token_scale.shape == (hidden_size,)
            and self.forward.shape == self.inverse.shape == (blocks, size, size)
            and blocks * size == hidden_size
            and self.token_codes.shape == (len(self.token_ids), hidden_size)
        )
        if not shapes_hold:
            raise TablesError(f"calibrated tables do not fit a hidden size of {hidden_size}")
        if not (np.sort(self.order) == np.arange(hidden_size)).all():
            raise TablesError("channel order in the calibrated tables is not a permutation")
        if (np.diff(self.token_ids) <= 0).any():
            raise TablesError("token ids in the calibrated tables are not sorted")

    def rotate(self, rows: F32) -> F32:
        """F times each row of [T, D]."""
        if len(self.forward) == 1:
            return times(rows, self.forward[0])
        return _by_blocks(np.take(rows, self.order, axis=1), self.forward)

    def rotate_back(self, components: F32) -> F32:
        """The inverse of `rotate`, [T, D]."""
        if len(self.inverse) == 1:
            return times(components, self.inverse[0])
        place = np.empty_like(self.order)
        place[self.order] = np.arange(len(place), dtype=place.dtype)  # argsort, but fast
        return np.take(_by_blocks(components, self.inverse), place, axis=1)

    def predicted(self, token_ids: TokenIds) -> F32:
        """p(t) of every row, [T, D]."""
        if len(self.token_ids) == 0:
            return np.zeros((len(token_ids), len(self.mean)), dtype=np.float32)
        at = np.minimum(np.searchsorted(self.token_ids, token_ids), len(self.token_ids) - 1)
        known = self.token_ids[at] == token_ids
        scale = self.token_scale * known[:, None]  # [T, D]
        return np.asarray(self.token_codes[at] * scale.astype(np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedCodec:
    """One calibrated level: a step, and the models fitted to it.

    families: models of the codes at this step. centres: [56, 4] float32, what to add to |q| = 1, 2,
    and 3 or more (column 0 is zero), in steps: the mean of what was rounded to it.
    base: [D] uint8, family of each component at offset 0. loudness: [D], weights that turn |y| /
    step into how loud a row is.
    """

    model: SplitModel
    step: float
    families: Families
    centres: F32
    base: U8
    loudness: F32
    kind: CodecKind = CodecKind.CALIBRATED

    @classmethod
    def build(
        cls, model: SplitModel, step: float, families: Families, centres: F32
    ) -> "CalibratedCodec":
        """Derive base families and loudness weights from sigma. Raises TablesError."""
        if centres.shape != (NUM_FAMILIES, 4) or not step > 0:
            raise TablesError("calibrated level has a wrong step or centres")
        base, loudness = scale_weights(model.sigma, step)
        return cls(
            model=model,
            step=step,
            families=families,
            centres=centres.astype(np.float32),
            base=base,
            loudness=loudness,
        )

    def encode(self, rows: Rows, token_ids: TokenIds) -> Encoded:
        """See RowCodec."""
        codes, offsets, mask, declined = self.quantize(rows, token_ids)
        family = self.family_of(offsets)
        escapes = np.abs(codes) > _REACH_OF[family]
        declined |= escapes.sum(axis=1) > _MOST_ESCAPES * rows.shape[1]
        if declined.any():
            taken = ~declined
            rows, codes, offsets = rows[taken], codes[taken], offsets[taken]
            mask, family = mask[taken], family[taken]
        aside = mask.any(axis=1)
        side = (offsets - OFFSETS[0] + np.where(aside, _ASIDE, 0)).astype(np.uint8).tobytes()
        if aside.any():
            side += encode_sparse(rows[aside], mask[aside])
        payload = side + encode_codes(self.families, family.reshape(-1), codes.reshape(-1))
        return Encoded(payload=payload, declined=declined)

    def quantize(
        self, rows: Rows, token_ids: TokenIds
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.bool_], RowMask]:
        """Codes [T, D], offsets [T], the mask of values sent aside [T, D], rows declined [T]."""
        centred = rows - self.model.mean
        mask = np.abs(centred) > self.model.tau
        declined = np.zeros(len(rows), dtype=np.bool_)
        if mask.any():
            declined = mask.sum(axis=1) > rows.shape[1] // 4
            centred[mask | declined[:, None]] = 0
        scaled = self.model.rotate(centred)
        scaled -= self.model.predicted(token_ids)
        scaled *= np.float32(1 / self.step)
        size = np.abs(scaled)
        beyond = size.max(axis=1, initial=0) > MAX_CODE
        scaled[beyond] = 0
        # Summed along the row: a matrix product's order depends on the number of rows.
        loud = np.maximum((size * self.loudness).sum(axis=1), 1e-6)
        offsets = np.rint(PER_OCTAVE * np.log2(loud)).astype(np.int64)
        declined |= beyond | (offsets > _LOUDEST)
        return np.rint(scaled).astype(np.int32), np.clip(offsets, *OFFSETS), mask, declined

    def family_of(self, offsets: npt.NDArray[np.int64]) -> U8:
        """Family of every component of rows with these offsets, [T, D]."""
        family = self.base.astype(np.int16) + offsets.astype(np.int16)[:, None]
        return np.asarray(np.clip(family, 0, NUM_FAMILIES - 1), dtype=np.uint8)

    def decode(self, payload: bytes, num_rows: int, token_ids: TokenIds) -> Rows:
        """See RowCodec."""
        data, hidden_size = memoryview(payload), len(self.model.mean)
        if len(data) < num_rows:
            raise FrameError("row bytes end too early")
        side = np.frombuffer(data, np.uint8, count=num_rows)
        if (side >= 2 * _ASIDE).any():
            raise FrameError("row byte with unknown flags")
        aside = np.flatnonzero(side & _ASIDE)
        at = num_rows
        sparse = None
        if len(aside):
            sparse = decode_sparse(data[at:], len(aside), hidden_size)
            at += sparse.num_bytes
        family = self.family_of((side & 0xF).astype(np.int64) + OFFSETS[0])
        flat, used = decode_codes(self.families, family.reshape(-1), data[at:])
        if at + used != len(data):
            raise FrameError(f"{len(data) - at - used} bytes left over after the codes")
        codes = flat.reshape(num_rows, hidden_size)
        rows = self.reconstruct(codes, family, token_ids)
        if sparse is not None:
            rows[aside[sparse.rows], sparse.columns] = sparse.values
        return rows

    def reconstruct(self, codes: npt.NDArray[np.int32], family: U8, token_ids: TokenIds) -> Rows:
        """Rows [T, D] from codes and their families."""
        size = np.minimum(np.abs(codes), 3).astype(np.uint8)
        centre = self.centres.reshape(-1)[family.astype(np.int16) * 4 + size]
        components = codes.astype(np.float32)
        components += np.sign(components) * centre
        components *= np.float32(self.step)
        components += self.model.predicted(token_ids)
        with np.errstate(over="ignore", invalid="ignore"):
            return self.model.rotate_back(components) + self.model.mean


def _by_blocks(rows: F32, blocks: F32) -> F32:
    """Rows [T, N B] times blocks [N, B, B] of a block-diagonal matrix, one product a block."""
    out = np.empty_like(rows)
    size = blocks.shape[-1]
    for index, block in enumerate(blocks):
        part = slice(index * size, (index + 1) * size)
        out[:, part] = times(rows[:, part], block)
    return out


def scale_weights(sigma: F32, step: float) -> tuple[U8, F32]:
    """Base families [D] and loudness weights [D] for components of rms sigma at this step.

    Only components that are more than half a step loud are listened to; a Gaussian's mean magnitude
    is sqrt(2 / pi) of its rms. A calibration-like row has loudness 1.
    """
    scale = sigma.astype(np.float64) / step
    heard = scale > 0.5
    if not heard.any():
        heard = scale >= scale.max()
    weights = np.where(heard, np.sqrt(np.pi / 2) / np.maximum(scale, 1e-9), 0) / heard.sum()
    return family_of_scale(scale), weights.astype(np.float32)
