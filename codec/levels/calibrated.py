"""The calibrated codec (ours): predict, rotate, quantize along a trellis, a model per component.

With x a row entering the split and t its input token, both sides know tables for:

    z = F (x - mean)                  F: the whitened eigenbasis
    y = z - p(t)                      p: what the token alone predicts
    h = exp(b + w . z / rms(z))       how much an error in this row costs, relative to the usual row
    y -> codes                        along `codec.entropy.trellis`, with step / sqrt(h) for a row
    bits of code c                    model of family base[c] + o, o one number per row

F = U' H^(1/2), where H is the second moment of the loss gradient at the split and U the
eigenvectors of the residual's covariance in that metric. This codes a Gaussian source with a
quadratic loss best (reverse water-filling, Cover & Thomas, section 10.3.3; transform coding: Goyal
2001, doi 10.1109/79.952802). Sources whose errors differ in cost are coded best with distortions
in inverse proportion to that cost. The offset o lets a row be louder or quieter than the
calibration text. Values far outside their channel (massive activations) are sent apart as outliers
(`codec.levels.threshold`). The receiver knows p(t), so only the difference is sent. Only the
encoder computes h.

Decoding looks codes up in integer tables, takes (level + centre) * step, and only then rotates
back. No float feeds back into the entropy decoder, so bytes decode alike on every machine.

Payload: a byte a row, the step index (0 to 15, eighth octaves of the step) in the high nibble and
offset + 7 in the low one, which is 15 when the row has outliers; for each such row a byte of
offset + 7; the sparse part of those rows; the codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from codec.arrays import F32, I8, I32, I64, U8, U16, Mask
from codec.chunks import by_chunks
from codec.entropy import trellis
from codec.entropy.integers import NUM_FAMILIES, PER_OCTAVE, family_of_scale
from codec.entropy.trellis import LARGEST_TARGET, UNITS, TrellisModels
from codec.errors import FrameError, TablesError
from codec.kernel.library import is_compiled
from codec.levels import rows_native
from codec.levels.split_model import NUM_STEP_INDICES, USUAL_STEP_INDEX, SplitModel
from codec.levels.tabq import STEPS
from codec.levels.threshold import Sparse, decode_sparse, encode_sparse
from codec.rows import ROWWISE_UP_TO, Encoded, RowMask, Rows, TokenIds

CALIBRATED_NUMBER: Final = 2  # of the codec's kind, in frames
OFFSETS: Final = (-7, 7)
# What each step index multiplies the step by: eighth octaves, the same floats on every machine.
STEP_FACTORS: Final[F32] = STEPS[128 - USUAL_STEP_INDEX : 128 - USUAL_STEP_INDEX + NUM_STEP_INDICES]
_WITH_OUTLIERS: Final = 0xF  # in place of the offset of a row that has some
# A row this far from the model is not worth its tables; the ladder's safe level takes it.
_LOUDEST: Final = OFFSETS[1] + 4  # quarter octaves, before clipping
MOST_ESCAPES: Final = 1 / 8  # share of a row's components
_WEIGHT_ONE: Final = 1 << 24  # loudness weights are whole numbers of this part


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
    kind: int = CALIBRATED_NUMBER

    @classmethod
    def build(
        cls, model: SplitModel, step: float, models: TrellisModels, centres: F32
    ) -> CalibratedCodec:
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
        mask, targets, step_index, declined = _joined(
            by_chunks(
                lambda part: self.targets(rows[part], token_ids[part]), len(rows), in_turn=True
            )
        )
        codes, model_ids, offsets, strange = _joined(
            by_chunks(lambda part: self._quantize(targets[part]), len(rows))
        )
        declined = declined | strange
        if declined.any():
            taken = ~declined
            rows, codes, model_ids, mask = rows[taken], codes[taken], model_ids[taken], mask[taken]
            offsets, step_index = offsets[taken], step_index[taken]
        payload = write_side(step_index, offsets, rows, mask)
        payload += trellis.encode(self.models, model_ids, codes)
        return Encoded(payload=payload, declined=declined)

    def _quantize(self, targets: I32) -> tuple[npt.NDArray[Any], ...]:
        """Codes and models [T, D] each, offsets and rows declined [T] each."""
        offsets, strange = self.offsets(targets)
        codes, model_ids, escapes = trellis.quantize(self.models, targets, self.base, offsets)
        return codes, model_ids, offsets, strange | (escapes > MOST_ESCAPES * targets.shape[1])

    def targets(self, rows: Rows, token_ids: TokenIds) -> tuple[Mask, I32, U8, RowMask]:
        """Outliers [T, D], what to quantize [T, D], step index [T], and rows declined [T]."""
        mask, rotated, step_index, declined = self.components(rows, token_ids)
        targets, beyond = self.in_units(rotated, step_index)
        return mask, targets, step_index, declined | beyond

    def in_units(self, components: F32, step_index: U8) -> tuple[I32, RowMask]:
        """Components [T, D] as the trellis takes them, and the rows [T] that are beyond its range.

        Overwrites the components.
        """
        components *= (UNITS / self.steps(step_index)).astype(np.float32)[:, None]
        np.rint(components, out=components)
        beyond = ~(np.abs(components).max(axis=1, initial=0) <= LARGEST_TARGET)  # NaN too
        if beyond.any():
            components[beyond] = 0
        return components.astype(np.int32), beyond

    def components(self, rows: Rows, token_ids: TokenIds) -> tuple[Mask, F32, U8, RowMask]:
        """Outliers [T, D], y [T, D] with these left out, step index [T], and rows declined [T]."""
        centred = rows - self.model.mean
        mask = np.abs(centred) > self.model.tau
        declined = np.zeros(len(rows), dtype=np.bool_)
        if mask.any():
            declined = mask.sum(axis=1) > rows.shape[1] // 4
            centred[mask | declined[:, None]] = 0
        rotated = self.model.rotate(centred)
        step_index = self.model.step_index(rotated)
        rotated -= self.model.predicted(token_ids)
        return mask, rotated, step_index, declined

    def offsets(self, targets: I32) -> tuple[I8, RowMask]:
        """Offset of each row [T], and the rows too loud for any."""
        return self.offsets_by(targets, self.weights)

    def offsets_by(self, targets: I32, weights: I32) -> tuple[I8, RowMask]:
        """`offsets` with other loudness weights."""
        loud = trellis.loudness(targets, weights)
        found = np.searchsorted(self.thresholds, loud, side="right") + OFFSETS[0]
        return np.minimum(found, OFFSETS[1]).astype(np.int8), found > _LOUDEST

    def values_of(self, codes: I32, model_ids: U8) -> F32:
        """What the decoder makes of codes and their models [T, D], in half steps."""
        level = np.abs(codes)
        level += level
        level -= model_ids & 1
        np.maximum(level, 0, out=level)  # of code 0
        value = level.astype(np.float32)
        np.minimum(level, 3, out=level)
        level += (model_ids >> 1).astype(np.int32) << 2
        value += self.centres.reshape(-1).take(level)
        np.negative(value, out=value, where=codes < 0)
        return value

    def steps(self, step_index: U8) -> F32:
        """Half step of each row [T]."""
        return np.asarray(np.float32(self.step) * STEP_FACTORS[step_index])

    def decode(self, payload: bytes, num_rows: int, token_ids: TokenIds) -> Rows:
        """See RowCodec."""
        if self.takes_together(num_rows):
            (rows,) = self.decode_together([payload], [token_ids])
            if rows is not None:
                return rows
        return self.restored(*self.decoded_components(payload, num_rows), token_ids)

    def takes_together(self, num_rows: int) -> bool:
        """Whether `decode_together` takes payloads of so many rows."""
        return 0 < num_rows <= ROWWISE_UP_TO and is_compiled()

    def decode_together(
        self, payloads: Sequence[bytes], token_ids: Sequence[TokenIds]
    ) -> list[Rows | None]:
        """What `decode` gives for each payload, in one call that lets go of Python's lock.

        None where `decode` has more to do, or has an error to raise. Every payload has rows of its
        own number, at most ROWWISE_UP_TO.
        """
        model = self.model
        tables = rows_native.FrameTables(
            models=self.models.models,
            centres=self.centres,
            base=self.base,
            steps=self.steps(np.arange(NUM_STEP_INDICES, dtype=np.uint8)),
            token_codes=model.token_codes,
            token_scale=model.token_scale,
            inverse=model.inverse,
            order=model.order,
            mean=model.mean,
        )
        listed = model.listed(np.concatenate(token_ids))
        return rows_native.rows_of_frames(tables, payloads, [len(ids) for ids in token_ids], listed)

    def decoded_components(self, payload: bytes, num_rows: int) -> tuple[F32, PayloadSide]:
        """y of every row as it arrives [T, D], and what goes beside. Raises FrameError."""
        data = memoryview(payload)
        side, at = read_side(data, num_rows, len(self.model.mean))
        components = trellis.decode(self.models, self.centres, self.base, side.offsets, data[at:])
        components *= self.steps(side.step_index)[:, None]
        return components, side

    def restored(self, components: F32, side: PayloadSide, token_ids: TokenIds) -> Rows:
        """Rows from their components [T, D]."""

        def restore(part: slice) -> Rows:
            scaled = components[part] + self.model.predicted(token_ids[part])
            with np.errstate(over="ignore", invalid="ignore"):
                return self.model.rows_back(scaled)

        pieces = by_chunks(restore, len(components), in_turn=True)
        rows = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if side.sparse is not None:
            rows[side.outliers[side.sparse.rows], side.sparse.columns] = side.sparse.values
        return rows


def _joined(pieces: list[tuple[npt.NDArray[Any], ...]]) -> list[npt.NDArray[Any]]:
    """The pieces' arrays, each put together along the rows."""
    if len(pieces) == 1:
        return list(pieces[0])
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


class PayloadSide(NamedTuple):
    """What a payload says beside its codes: step index and offset of each row, [T] each, the rows
    with outliers, and their outliers."""

    step_index: U8
    offsets: I8
    outliers: I64
    sparse: Sparse | None


def write_side(step_index: U8, offsets: I8, rows: Rows, mask: Mask) -> bytes:
    """A payload's bytes before its codes. mask: outliers among the rows [T, D]."""
    outliers = mask.any(axis=1)
    place = (offsets - OFFSETS[0]).astype(np.uint8)
    low = np.where(outliers, _WITH_OUTLIERS, place).astype(np.uint8)
    payload = (step_index << 4 | low).tobytes()
    if outliers.any():
        payload += place[outliers].tobytes() + encode_sparse(rows[outliers], mask[outliers])
    return payload


def read_side(data: memoryview, num_rows: int, hidden_size: int) -> tuple[PayloadSide, int]:
    """The inverse of `write_side`, and the bytes read. Raises FrameError."""
    if len(data) < num_rows:
        raise FrameError("row bytes end too early")
    side = np.frombuffer(data, np.uint8, count=num_rows)
    place: U8 = np.asarray(side & 0xF, dtype=np.uint8)
    outliers = np.flatnonzero(place == _WITH_OUTLIERS)
    at = num_rows + len(outliers)
    if len(data) < at:
        raise FrameError("row bytes end too early")
    sparse: Sparse | None = None
    if len(outliers):
        place[outliers] = np.frombuffer(data, np.uint8, count=len(outliers), offset=num_rows)
        if (place > OFFSETS[1] - OFFSETS[0]).any():
            raise FrameError("row offset outside its range")
        sparse = decode_sparse(data[at:], len(outliers), hidden_size)
        at += sparse.num_bytes
    offsets = place.astype(np.int8) + np.int8(OFFSETS[0])
    step_index = np.asarray(side >> 4, dtype=np.uint8)
    return PayloadSide(step_index, offsets, outliers.astype(np.int64), sparse), at


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
