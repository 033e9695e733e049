"""The calibrated kind: its levels, its entry in a tables file, and how a level is fitted.

The closed form of the first step is ours. It prices an error by the second-order expansion of KL,
which is biased where steps are coarse: `optimizer.export.calibration.fit` corrects the aim by
measuring.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from codec.arrays import F32, F64, I32, I64, U8, Arrays
from codec.entropy import trellis
from codec.entropy.counts import PRIOR_COUNT, mirrored, smooth_prior
from codec.entropy.integers import ALPHABET, NUM_FAMILIES, Families, to_symbols
from codec.entropy.rans import Models
from codec.entropy.trellis import LARGEST_TARGET, UNITS
from codec.errors import TablesError
from codec.levels import split_model
from codec.levels.base import CodecKind, CoderSeconds, Entry, LadderTables, LevelSpec
from codec.levels.calibrated import CALIBRATED_NUMBER, CalibratedCodec, trellis_models
from codec.levels.split_model import FittedSplit, SplitModel
from codec.rows import RowCodec

_SLOPE: Final = 0.3  # squared half steps that a bit is worth to the path search
_ROUNDS: Final = 5  # step and models settle within 2 % in four
_TRIAL_ROWS: Final = 2048
_SYNTHETIC_STEP: Final = 0.55  # about 2 bits an element on synthetic rows


class CalibratedKind(CodecKind):
    """The levels q1, q2, ...: the ladder below lossless."""

    name = "calibrated"
    number = CALIBRATED_NUMBER
    level_pattern = re.compile(r"q\d+")
    levels: ClassVar[tuple[LevelSpec, ...]] = (
        LevelSpec(name="q1", bits_per_element=4.3, quality_loss_pct=0.4, target_kl=0.001),
        LevelSpec(name="q2", bits_per_element=3.5, quality_loss_pct=0.7, target_kl=0.003),
        LevelSpec(name="q3", bits_per_element=3.0, quality_loss_pct=2.0, target_kl=0.0065),
        LevelSpec(name="q4", bits_per_element=2.3, quality_loss_pct=7.3, target_kl=0.02),
        LevelSpec(name="q5", bits_per_element=1.6, quality_loss_pct=18.5, target_kl=0.06),
    )
    seconds = CoderSeconds(
        encode_fixed_s=130e-6,
        encode_s_per_element=50e-9,
        decode_fixed_s=70e-6,
        decode_s_per_element=35e-9,
    )
    trial_kls: ClassVar[tuple[float, ...]] = (0.0015, 0.0065, 0.03)

    def prediction_bytes(self, vocab_size: int, hidden_size: int) -> int:
        """See CodecKind: the token predictions."""
        return split_model.prediction_bytes(vocab_size, hidden_size)

    def rotation_bytes(self, hidden_size: int) -> int:
        """See CodecKind: the rotation and its inverse."""
        return split_model.rotation_bytes(hidden_size)

    def read(self, entry: Entry, tables: LadderTables) -> RowCodec:
        """See CodecKind."""
        name = entry["name"]
        if tables.model is None:
            raise TablesError(f"level {name!r} is calibrated, but the tables have no split model")
        models = trellis_models(tables.arrays[f"{name}.cdf"], slope=float(entry["slope"]))
        return CalibratedCodec.build(
            tables.model, float(entry["step"]), models, tables.arrays[f"{name}.centres"]
        )

    def fit(self, name: str, target_kl: float, split: FittedSplit) -> tuple[Entry, Arrays]:
        """See CodecKind.

        KL is about half the sum of curvature, error weights and squared error over a row's
        components (ours; second-order expansion in the metric F). Step and models are found
        together, in turns.
        """
        num_rows, size = split.components.shape
        part = np.linspace(0, num_rows - 1, min(num_rows, _TRIAL_ROWS)).astype(np.int64)
        step = float(np.sqrt(8 * target_kl / (split.curvature * size)))
        prior = np.repeat(smooth_prior(), 2, axis=0)
        models = Models.from_counts(prior)
        centres = np.zeros((NUM_FAMILIES, 4), dtype=np.float32)
        for turn in range(_ROUNDS):
            last = turn == _ROUNDS - 1
            priced = trellis_models(models.cdf, slope=_SLOPE)
            codec = CalibratedCodec.build(split.model, step, priced, centres)
            tally = _Tally()
            for rows in _parts(np.arange(num_rows) if last else part):
                coded = _Coded.of(codec, split, rows)
                tally.add(coded)
            models = Models.from_counts(mirrored(tally.symbols) + PRIOR_COUNT * prior)
            centres = tally.centres()
            if not last:
                cost = coded.mean_cost(codec, split.error_weights[part])
                expected = split.curvature / 2 * cost
                step *= float(np.clip(np.sqrt(target_kl / max(expected, 1e-30)), 0.5, 2))
        entry = {
            "name": name,
            "kind": self.name,
            "step": step,
            "slope": _SLOPE,
            "extra": self.beside_ladder,
        }
        return entry, {f"{name}.cdf": models.cdf, f"{name}.centres": centres}

    def synthetic(self, model: SplitModel, families: Families) -> RowCodec:
        """See CodecKind."""
        models = trellis_models(np.repeat(families.models.cdf, 2, axis=0), slope=_SLOPE)
        centres = np.zeros((NUM_FAMILIES, 4), dtype=np.float32)
        return CalibratedCodec.build(model, _SYNTHETIC_STEP, models, centres)


@dataclass(frozen=True, slots=True)
class _Coded:
    """Calibration rows after quantizing: true values and levels in half steps, models [T, D]."""

    values: F32
    levels: F32
    model_ids: U8
    codes: I32
    half_steps: F32

    @classmethod
    def of(cls, codec: CalibratedCodec, split: FittedSplit, rows: I64) -> _Coded:
        """Quantize these rows' components as the codec would."""
        half_steps = codec.steps(split.step_index[rows])
        values = split.components[rows] / half_steps[:, None]
        # A row with values beyond is declined when it is coded.
        units = np.clip(np.rint(values * UNITS), -LARGEST_TARGET, LARGEST_TARGET)
        targets = units.astype(np.int32)
        offsets, _ = codec.offsets(targets)
        codes, model_ids, _ = trellis.quantize(codec.models, targets, codec.base, offsets)
        size = np.abs(codes)
        levels = np.sign(codes) * (2 * size - np.where(size > 0, model_ids & 1, 0))
        return cls(values, levels.astype(np.float32), model_ids, codes, half_steps)

    def mean_cost(self, codec: CalibratedCodec, error_weights: F64) -> float:
        """Mean over rows of error weight times the squared error of what arrives."""
        column = np.minimum(np.abs(self.levels), 3).astype(np.int64)
        centre = codec.centres[self.model_ids >> 1, column]
        error = self.values - self.levels - np.sign(self.levels) * centre
        squared = (error.astype(np.float64) ** 2).sum(axis=1) * self.half_steps.astype(float) ** 2
        return float((error_weights * squared).mean())


class _Tally:
    """What is counted over all coded rows, a part of them at a time.

    symbols: [112, 64] times each symbol was used under each model.
    """

    def __init__(self) -> None:
        self.symbols = np.zeros((2 * NUM_FAMILIES, ALPHABET))
        self._count = np.zeros(NUM_FAMILIES * 4)
        self._excess = np.zeros(NUM_FAMILIES * 4)

    def add(self, coded: _Coded) -> None:
        """Count these rows too."""
        symbols, _ = to_symbols(np.asarray(coded.model_ids >> 1, dtype=np.uint8), coded.codes)
        cell = coded.model_ids.astype(np.int64) * ALPHABET + symbols
        found = np.bincount(cell.reshape(-1), minlength=self.symbols.size)
        self.symbols += found.reshape(self.symbols.shape)
        excess = (coded.values - coded.levels) * np.sign(coded.levels)
        column = np.minimum(np.abs(coded.levels), 3).astype(np.int64)
        cell = ((coded.model_ids >> 1).astype(np.int64) * 4 + column).reshape(-1)
        size = len(self._count)
        self._count += np.bincount(cell, minlength=size)
        self._excess += np.bincount(cell, weights=excess.reshape(-1), minlength=size)

    def centres(self) -> F32:
        """[56, 4] mean of what lies beyond its level, away from zero, by family and level."""
        centres = (self._excess / (self._count + 50)).reshape(NUM_FAMILIES, 4).astype(np.float32)
        centres[:, 0] = 0
        return centres


def _parts(rows: I64) -> Iterator[I64]:
    for begin in range(0, len(rows), _TRIAL_ROWS):
        yield rows[begin : begin + _TRIAL_ROWS]


CALIBRATED: Final = CalibratedKind()
