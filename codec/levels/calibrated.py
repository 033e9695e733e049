"""The calibrated codec (ours): predict, rotate, quantize along a trellis, a model per component.

With x a row entering the split and t its input token, both sides know tables for:

    z = F (x - mean)                  F: the whitened eigenbasis
    y = z - p(t)                      p: what the token alone predicts
    h = exp(b + w . z / rms(z))       how much an error in this row costs, relative to the usual row
    y -> codes                        along `codec.entropy.trellis`, with step / sqrt(h) for the
    whole row bits of code c                    model of family base[c] + o, o one number per row

F = U' H^(1/2), where H is the second moment of the loss gradient at the split and U the
eigenvectors of the residual's covariance in that metric. A Gaussian source with a quadratic loss is
coded best this way (reverse water-filling, Cover & Thomas, section 10.3.3; transform coding: Goyal
2001, doi 10.1109/79.952802), and sources that differ in what an error costs by distortions in
inverse proportion to it. The offset o lets a row be louder or quieter than the calibration text.
Values far outside their channel (massive activations) travel aside, as in `codec.levels.threshold`.
p(t) is known to the receiver, so only the surprise travels; h only the encoder computes.

Decoding is table look-ups on integers, then (level + centre) * step, and only then the inverse
rotation; nothing computed in floats feeds back into the entropy decoder, so bytes decode alike on
every machine.

Payload: a byte a row, the fineness (0 to 15, eighth octaves of the step) in the high nibble and
offset + 7 in the low one, which is 15 when values of the row travel aside; for each such row a byte
of offset + 7; the sparse part of those rows; the codes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codec.chunks import by_chunks
from codec.entropy import trellis
from codec.entropy.integers import NUM_FAMILIES, PER_OCTAVE, family_of_scale
from codec.entropy.rans_numpy import U8, U16
from codec.entropy.trellis import LARGEST_TARGET, UNITS, TrellisModels
from codec.errors import FrameError, TablesError
from codec.frame import CodecKind
from codec.levels.tabq import STEPS
from codec.levels.threshold import Sparse, decode_sparse, encode_sparse
from codec.rows import Encoded, RowMask, Rows, TokenIds, times

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]

OFFSETS = (-7, 7)
FINENESS = 16
USUAL = 8  # the fineness of a row with h = 1
# What each fineness multiplies the step by: eighth octaves, the same floats on every machine.
FINER: F32 = STEPS[128 - USUAL : 128 - USUAL + FINENESS]
_ASIDE = 0xF
# A row this far from the model is not worth its tables; the ladder's safe level takes it.
_LOUDEST = OFFSETS[1] + 4  # quarter octaves, before clipping
_MOST_ESCAPES = 1 / 8  # share of a row's components
_WEIGHT_ONE = 1 << 24  # loudness weights are whole numbers of this part


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitModel:
    """What one split's rows look like; shared by all calibrated levels of a ladder.

    mean, tau, sigma: [D]; tau bounds |x - mean| per channel, sigma is the rms of each component of
    y. forward, inverse: [N, B, B] with N B = D: block n takes channels order[n B:(n+1) B].
    order: [D] int32. token_ids: [V'] int32 sorted; token_codes: [V', D] int8; token_scale: [D]:
    p(t) = token_codes * token_scale, zero for a token that is not listed. sensitivity: [D + 1], w
    and b of log h.
    """

    mean: F32
    tau: F32
    sigma: F32
    forward: F32
    inverse: F32
    order: I32
    token_ids: I32
    token_codes: I8
    token_scale: F32
    sensitivity: F32

    def check(self, hidden_size: int) -> None:
        """Raises TablesError unless every shape, and the order, fits hidden_size."""
        blocks, size = self.forward.shape[0], self.forward.shape[-1]
        shapes_hold = (
            all(a.shape == (hidden_size,) for a in (self.mean, self.tau, self.sigma, self.order))
            and self.token_scale.shape == (hidden_size,)
            and self.sensitivity.shape == (hidden_size + 1,)
            and self.forward.shape == self.inverse.shape == (blocks, size, size)
            and blocks * size == hidden_size
            and self.token_codes.shape == (len(self.token_ids), hidden_size)
        )
        if not shapes_hold:
            raise TablesError(f"calibrated tables do not fit a hidden size of {hidden_size}")
        if hidden_size > trellis.MAX_WIDTH:
            raise TablesError(f"a hidden size of {hidden_size} is too wide for the trellis")
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
        codes = self.token_codes[at].astype(np.float32)
        codes *= self.token_scale
        codes[~known] = 0
        return codes

    def fineness(self, turned: F32) -> U8:
        """Fineness [T] of rows z [T, D]: USUAL - 4 log2 h, in whole eighth octaves of the step."""
        # Sums along rows: a matrix product's order of adding depends on the number of rows.
        power = (turned * turned).sum(axis=1) / turned.shape[1]
        along = (turned * self.sensitivity[:-1]).sum(axis=1)
        log_h = self.sensitivity[-1] + along / np.sqrt(np.maximum(power, 1e-30))
        wanted = np.rint(USUAL - 4 / np.log(2) * log_h)
        return np.asarray(np.clip(wanted, 0, FINENESS - 1), dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedCodec:
    """One calibrated level: a step, and the models fitted to it.

    step: a half step of `codec.entropy.trellis` in a row of usual sensitivity. models: of the codes
    at this step. centres: [56, 4] float32, what to add to levels 1, 2, and 3 or more (column 0 is
    zero), in half steps: the mean of what was quantized to them. base: [D] uint8, family of each
    component at offset 0. weights: [D] int32, thresholds: int64: loudness of a row and where each
    offset begins.
    """

    model: SplitModel
    step: float
    models: TrellisModels
    centres: F32
    base: U8
    weights: I32
    thresholds: I64
    kind: CodecKind = CodecKind.CALIBRATED

    @classmethod
    def build(
        cls, model: SplitModel, step: float, models: TrellisModels, centres: F32
    ) -> "CalibratedCodec":
        """Derive base families and loudness from sigma. Raises TablesError."""
        if centres.shape != (NUM_FAMILIES, 4) or not step > 0:
            raise TablesError("calibrated level has a wrong step or centres")
        base, weights = scale_weights(model.sigma, 2 * step)
        middle = np.arange(OFFSETS[0], _LOUDEST + 1) + 0.5
        begin = np.rint(2 * UNITS * _WEIGHT_ONE * np.exp2(middle / PER_OCTAVE))
        return cls(
            model=model,
            step=step,
            models=models,
            centres=np.ascontiguousarray(centres, dtype=np.float32),
            base=base,
            weights=weights,
            thresholds=begin.astype(np.int64),
        )

    def encode(self, rows: Rows, token_ids: TokenIds) -> Encoded:
        """See RowCodec."""
        mask, targets, fineness, declined = _joined(
            by_chunks(
                lambda part: self.targets(rows[part], token_ids[part]), len(rows), in_turn=True
            )
        )
        codes, which, offsets, strange = _joined(
            by_chunks(lambda part: self._quantize(targets[part]), len(rows))
        )
        declined = declined | strange
        if declined.any():
            taken = ~declined
            rows, codes, which, mask = rows[taken], codes[taken], which[taken], mask[taken]
            offsets, fineness = offsets[taken], fineness[taken]
        aside = mask.any(axis=1)
        place = (offsets - OFFSETS[0]).astype(np.uint8)
        payload = (fineness << 4 | np.where(aside, _ASIDE, place).astype(np.uint8)).tobytes()
        if aside.any():
            payload += place[aside].tobytes() + encode_sparse(rows[aside], mask[aside])
        payload += trellis.encode(self.models, which, codes)
        return Encoded(payload=payload, declined=declined)

    def _quantize(self, targets: I32) -> tuple[npt.NDArray[Any], ...]:
        """Codes and models [T, D] each, offsets and rows declined [T] each."""
        offsets, strange = self.offsets(targets)
        codes, which, escapes = trellis.quantize(self.models, targets, self.base, offsets)
        return codes, which, offsets, strange | (escapes > _MOST_ESCAPES * targets.shape[1])

    def targets(
        self, rows: Rows, token_ids: TokenIds
    ) -> tuple[npt.NDArray[np.bool_], I32, U8, RowMask]:
        """Values aside [T, D], what to quantize [T, D], fineness [T], and rows declined [T]."""
        centred = rows - self.model.mean
        mask = np.abs(centred) > self.model.tau
        declined = np.zeros(len(rows), dtype=np.bool_)
        if mask.any():
            declined = mask.sum(axis=1) > rows.shape[1] // 4
            centred[mask | declined[:, None]] = 0
        turned = self.model.rotate(centred)
        fineness = self.model.fineness(turned)
        turned -= self.model.predicted(token_ids)
        turned *= (UNITS / self.steps(fineness)).astype(np.float32)[:, None]
        np.rint(turned, out=turned)
        beyond = np.abs(turned).max(axis=1, initial=0) > LARGEST_TARGET
        if beyond.any():
            declined |= beyond
            turned[beyond] = 0
        return mask, turned.astype(np.int32), fineness, declined

    def offsets(self, targets: I32) -> tuple[I8, RowMask]:
        """Offset of each row [T], and the rows too loud for any."""
        loud = trellis.loudness(targets, self.weights)
        found = np.searchsorted(self.thresholds, loud, side="right") + OFFSETS[0]
        return np.minimum(found, OFFSETS[1]).astype(np.int8), found > _LOUDEST

    def steps(self, fineness: U8) -> F32:
        """Half step of each row [T]."""
        return np.asarray(np.float32(self.step) * FINER[fineness])

    def decode(self, payload: bytes, num_rows: int, token_ids: TokenIds) -> Rows:
        """See RowCodec."""
        data = memoryview(payload)
        fineness, offsets, aside, at = _read_side(data, num_rows)
        sparse: Sparse | None = None
        if len(aside):
            sparse = decode_sparse(data[at:], len(aside), len(self.model.mean))
            at += sparse.num_bytes
        components = trellis.decode(self.models, self.centres, self.base, offsets, data[at:])
        steps = self.steps(fineness)

        def restore(part: slice) -> Rows:
            scaled = components[part] * steps[part, None]
            scaled += self.model.predicted(token_ids[part])
            with np.errstate(over="ignore", invalid="ignore"):
                back = self.model.rotate_back(scaled)
                back += self.model.mean
            return back

        pieces = by_chunks(restore, num_rows, in_turn=True)
        rows = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if sparse is not None:
            rows[aside[sparse.rows], sparse.columns] = sparse.values
        return rows


def _joined(pieces: list[tuple[npt.NDArray[Any], ...]]) -> list[npt.NDArray[Any]]:
    """The pieces' arrays, each put together along the rows."""
    if len(pieces) == 1:
        return list(pieces[0])
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


def _read_side(data: memoryview, num_rows: int) -> tuple[U8, I8, npt.NDArray[np.int64], int]:
    """Fineness and offset of each row, rows with values aside, and the bytes read."""
    if len(data) < num_rows:
        raise FrameError("row bytes end too early")
    side = np.frombuffer(data, np.uint8, count=num_rows)
    place: U8 = np.asarray(side & 0xF, dtype=np.uint8)
    aside = np.flatnonzero(place == _ASIDE)
    at = num_rows + len(aside)
    if len(data) < at:
        raise FrameError("row bytes end too early")
    if len(aside):
        place[aside] = np.frombuffer(data, np.uint8, count=len(aside), offset=num_rows)
        if (place > OFFSETS[1] - OFFSETS[0]).any():
            raise FrameError("row offset outside its range")
    offsets = place.astype(np.int8) + np.int8(OFFSETS[0])
    return np.asarray(side >> 4, dtype=np.uint8), offsets, aside.astype(np.int64), at


def _by_blocks(rows: F32, blocks: F32) -> F32:
    """Rows [T, N B] times blocks [N, B, B] of a block-diagonal matrix, one product a block."""
    out = np.empty_like(rows)
    size = blocks.shape[-1]
    for index, block in enumerate(blocks):
        part = slice(index * size, (index + 1) * size)
        out[:, part] = times(rows[:, part], block)
    return out


def scale_weights(sigma: F32, step: float) -> tuple[U8, I32]:
    """Base families [D] and loudness weights [D] for components of rms sigma and codes of `step`.

    Only components that are more than half a step loud are listened to; a Gaussian's mean magnitude
    is sqrt(2 / pi) of its rms. A calibration-like row has loudness 1.
    """
    scale = sigma.astype(np.float64) / step
    heard = scale > 0.5
    if not heard.any():
        heard = scale >= scale.max()
    weights = np.where(heard, np.sqrt(np.pi / 2) / np.maximum(scale, 1e-3), 0) / heard.sum()
    whole = np.rint(np.minimum(weights, 4) * _WEIGHT_ONE)
    return family_of_scale(scale), whole.astype(np.int32)


def trellis_models(cdf: U16, *, slope: float) -> TrellisModels:
    """`TrellisModels.from_cdf`, refusing a slope that is not a price. Raises TablesError."""
    if not 0 <= slope < 100:
        raise TablesError(f"calibrated level with a slope of {slope}")
    return TrellisModels.from_cdf(cdf, slope=slope)
