"""What one split's rows look like: mean, rotation, token predictions, sensitivity.

Tables of this form have fixed sizes, which memory is planned by: see `prediction_bytes` and
`rotation_bytes`. How they are used is in `codec.levels.calibrated`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from codec.arrays import F32, F64, I8, I32, I64, U8, Arrays
from codec.entropy import trellis
from codec.errors import TablesError
from codec.kernel.library import is_compiled
from codec.levels import rows_native
from codec.rows import ROWWISE_UP_TO, TokenIds, times

NUM_STEP_INDICES: Final = 16
USUAL_STEP_INDEX: Final = 8  # of a row with h = 1
# One byte a listed token and channel; the file is mapped, not loaded.
MOST_PREDICTION_BYTES: Final = 32 << 20
# Above this width a dense rotation costs more than the layers whose traffic it saves.
_DENSE_UP_TO: Final = 2048
_BLOCK: Final = 256
_FLOAT_BYTES: Final = 4


def rotation_blocks(hidden_size: int) -> int:
    """Blocks of the rotation: one up to a width of 2048, else blocks of 256 where that divides."""
    if hidden_size <= _DENSE_UP_TO or hidden_size % _BLOCK:
        return 1
    return hidden_size // _BLOCK


def rotation_bytes(hidden_size: int) -> int:
    """Bytes of the rotation and its inverse, float32, resident once the tables are loaded."""
    return 2 * _FLOAT_BYTES * hidden_size * (hidden_size // rotation_blocks(hidden_size))


def prediction_bytes(vocab_size: int, hidden_size: int) -> int:
    """Bytes of the token predictions, which stay in the file's pages until a token needs them."""
    return min(vocab_size * hidden_size, MOST_PREDICTION_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitModel:
    """What one split's rows look like; all calibrated levels of a ladder share it.

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

    @classmethod
    def of(cls, arrays: Arrays, hidden_size: int) -> SplitModel:
        """From a tables file's arrays. Raises KeyError for a missing one, and as `check` does."""
        model = cls(**{field.name: arrays[field.name] for field in fields(cls)})
        model.check(hidden_size)
        return model

    def arrays(self) -> Arrays:
        """The arrays, as a tables file holds them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def check(self, hidden_size: int) -> None:
        """Raises TablesError unless every type and shape, and the order, fits hidden_size."""
        types = {"order": np.int32, "token_ids": np.int32, "token_codes": np.int8}
        for field in fields(self):
            found = getattr(self, field.name).dtype
            if found != types.get(field.name, np.float32):  # the kernel reads them as they are
                raise TablesError(f"{field.name} in the calibrated tables has the type {found}")
        if self.forward.ndim != 3 or self.token_ids.ndim != 1:
            raise TablesError(f"calibrated tables do not fit a hidden size of {hidden_size}")
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
        ids = self.token_ids
        if (ids[1:] <= ids[:-1]).any() or (ids < 0).any():
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

    def rows_back(self, components: F32) -> F32:
        """Rows from components [T, D]: the inverse rotation, and the mean.

        Up to ROWWISE_UP_TO rows, each comes out as if it had come alone.
        """
        if is_compiled() and len(components) <= ROWWISE_UP_TO:
            return rows_native.rotated_back(components, self.inverse, self.order, self.mean)
        back = self.rotate_back(components)
        back += self.mean
        return back

    def listed(self, token_ids: TokenIds) -> I64:
        """Where each token stands in `token_ids`; -1 for one that is not listed. [T]"""
        if len(self.token_ids) == 0:
            return np.full(len(token_ids), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.token_ids, token_ids), len(self.token_ids) - 1)
        return np.where(self.token_ids[at] == token_ids, at, -1).astype(np.int64)

    def predicted(self, token_ids: TokenIds) -> F32:
        """p(t) of every row, [T, D]."""
        at = self.listed(token_ids)
        if len(self.token_ids) == 0:
            return np.zeros((len(token_ids), len(self.mean)), dtype=np.float32)
        codes = self.token_codes[at].astype(np.float32)
        codes *= self.token_scale
        codes[at < 0] = 0
        return codes

    def step_index(self, rotated: F32) -> U8:
        """Step index [T] of rows z [T, D]: 8 - 4 log2 h, in whole eighth octaves of the step."""
        # Sums along rows: a matrix product's order of adding depends on the number of rows.
        power = (rotated * rotated).sum(axis=1) / rotated.shape[1]
        along = (rotated * self.sensitivity[:-1]).sum(axis=1)
        log_h = self.sensitivity[-1] + along / np.sqrt(np.maximum(power, 1e-30))
        wanted = np.rint(USUAL_STEP_INDEX - 4 / np.log(2) * log_h)
        return np.asarray(np.clip(wanted, 0, NUM_STEP_INDICES - 1), dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedSplit:
    """A split's model and the calibration rows as its coders see them, massive rows left out.

    components: [N, D], y of held-out prediction. step_index: [N], by a sensitivity that was fitted
    without the row. error_weights: [N], squared length of the gradient in y, relative to its mean.
    curvature: that mean over D. dense: [N, D], the rows themselves. slopes: [N, D], their
    gradients.
    """

    model: SplitModel
    components: F32
    step_index: U8
    error_weights: F64
    curvature: float
    dense: F32
    slopes: F32


def _by_blocks(rows: F32, blocks: F32) -> F32:
    """Rows [T, N B] times blocks [N, B, B] of a block-diagonal matrix, one product a block."""
    out = np.empty_like(rows)
    size = blocks.shape[-1]
    for index, block in enumerate(blocks):
        part = slice(index * size, (index + 1) * size)
        out[:, part] = times(rows[:, part], block)
    return out
