"""The TAB-Q kind: its levels, its entry in a tables file, and how a level is fitted.

The paper's method is built beside the ladder: for comparison, and as the safe level of rows that a
calibrated level declines. The closed form of the first delta is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from codec.arrays import F32, F64, U8, Arrays
from codec.entropy.counts import count_models, count_symbols
from codec.entropy.integers import ALPHABET, NUM_FAMILIES, Families
from codec.errors import TablesError
from codec.levels.base import CodecKind, CoderSeconds, Entry, LadderTables, LevelSpec
from codec.levels.split_model import FittedSplit, SplitModel
from codec.levels.tabq import STEPS, TABQ_NUMBER, TabqCodec
from codec.levels.threshold import mask_above
from codec.rows import RowCodec

_TAU_PERCENTILE: Final = 99.9  # of the calibration rows' magnitudes; larger ones are outliers
_ROUNDS: Final = 5
_PART_ROWS: Final = 2048
_MIN_BITS: Final = 2
_MAX_BITS: Final = 12


class TabqKind(CodecKind):
    """The levels tabq1, tabq2, ...: usable by name, never chosen at run time."""

    name = "tabq"
    number = TABQ_NUMBER
    level_pattern = re.compile(r"tabq\d*")
    levels: ClassVar[tuple[LevelSpec, ...]] = (
        LevelSpec(name="tabq1", bits_per_element=5.0, quality_loss_pct=0.3, target_kl=0.001),
        LevelSpec(name="tabq2", bits_per_element=3.5, quality_loss_pct=2.5, target_kl=0.008),
        LevelSpec(name="tabq3", bits_per_element=2.7, quality_loss_pct=6.0, target_kl=0.024),
    )
    seconds = CoderSeconds(
        encode_fixed_s=100e-6,
        encode_s_per_element=35e-9,
        decode_fixed_s=50e-6,
        decode_s_per_element=15e-9,
    )
    trial_kls: ClassVar[tuple[float, ...]] = (0.0015, 0.016)
    beside_ladder = True

    def read(self, entry: Entry, tables: LadderTables) -> RowCodec:
        """See CodecKind."""

        def per_channel(key: str) -> npt.NDArray[Any] | None:
            if not entry[key]:
                return None
            array = tables.arrays[entry[key]]
            if array.shape != (tables.hidden_size,):
                raise TablesError(
                    f"an array of shape {list(array.shape)} for a width of {tables.hidden_size}"
                )
            return array

        cdf = tables.arrays[f"{entry['name']}.cdf"] if entry["entropy"] else None
        return TabqCodec(
            hidden_size=tables.hidden_size,
            delta=float(entry["delta"]),
            top_k=int(entry["top_k"]),
            tau=per_channel("tau"),
            min_bits=int(entry["min_bits"]),
            max_bits=int(entry["max_bits"]),
            families=None if cdf is None else Families.from_cdf(cdf),
            centre=per_channel("centre"),
            eighths=per_channel("eighths"),
        )

    def fit(self, name: str, target_kl: float, split: FittedSplit) -> tuple[Entry, Arrays]:
        """See CodecKind: the delta that brings the target KL.

        Values beyond tau, a percentile of the calibration rows' magnitudes, are outliers. The
        "tabq.*" arrays are the same for all levels.
        """
        num_rows, size = split.dense.shape
        threshold = float(np.quantile(np.abs(split.dense), _TAU_PERCENTILE / 100))
        tau = np.full(size, threshold, dtype=np.float32)
        mask = mask_above(split.dense, tau)
        dense = np.where(mask, np.float32(0), split.dense)
        power = float(_squared_lengths(dense).mean())
        error_weights = _squared_lengths(split.slopes) / size
        delta = float(np.sqrt(2 * target_kl / (float(error_weights.mean()) * power)))
        for _ in range(_ROUNDS):
            scales, declined = TabqCodec(hidden_size=size, delta=delta).choose_scales(dense)
            if declined.any():
                raise ValueError("calibration rows are outside TAB-Q's range of scales")
            squared = _squared_errors(dense, scales)
            expected = float((error_weights * squared).mean()) / 2
            delta *= float(np.clip(np.sqrt(target_kl / max(expected, 1e-30)), 0.5, 2))
        kept = np.maximum((~mask).sum(axis=0), 1)
        centre = (dense.sum(axis=0, dtype=np.float64) / kept).astype(np.float32)
        squares = np.zeros(size)
        for part in _parts(num_rows):
            deviation = np.where(mask[part], np.float32(0), dense[part] - centre)
            squares += np.einsum("td,td->d", deviation, deviation, dtype=np.float64)
        eighths = np.rint(8 * np.log2(np.maximum(np.sqrt(squares / kept), 1e-9))).astype(np.int32)
        codec = TabqCodec(hidden_size=size, delta=delta, centre=centre, eighths=eighths)
        counts = np.zeros((NUM_FAMILIES, ALPHABET))
        for part in _parts(num_rows):
            codes = np.rint(dense[part] / _steps(scales[part])).astype(np.int32)
            surprise = codes - codec.expected(scales[part])
            surprise[mask[part]] = 0
            offsets = codec.choose_offsets(scales[part], surprise)
            counts += count_symbols(codec.family_of(scales[part], offsets), surprise)
        entry = {
            "name": name,
            "kind": self.name,
            "delta": delta,
            "top_k": 0,
            "tau": "tabq.tau",
            "min_bits": _MIN_BITS,
            "max_bits": _MAX_BITS,
            "entropy": True,
            "centre": "tabq.tau.centre",
            "eighths": "tabq.tau.eighths",
            "extra": self.beside_ladder,
        }
        return entry, {
            "tabq.tau.centre": centre,
            "tabq.tau.eighths": eighths,
            "tabq.tau": tau,
            f"{name}.cdf": count_models(counts).cdf,
        }

    def synthetic(self, model: SplitModel, families: Families) -> RowCodec:
        """See CodecKind."""
        return TabqCodec(hidden_size=len(model.mean), delta=0.1, families=families)


def _parts(num_rows: int) -> Iterator[slice]:
    """A part of the rows at a time: what is made of all of them is as large as a model's layer."""
    for begin in range(0, num_rows, _PART_ROWS):
        yield slice(begin, begin + _PART_ROWS)


def _squared_lengths(rows: F32) -> F64:
    return np.asarray(np.einsum("td,td->t", rows, rows, dtype=np.float64))


def _steps(scales: U8) -> F32:
    return np.asarray(np.maximum(STEPS[scales], 1e-30)[:, None], dtype=np.float32)


def _squared_errors(dense: F32, scales: U8) -> F64:
    """What rounding to the scales' steps costs each row, [T]."""
    found = np.empty(len(dense))
    for part in _parts(len(dense)):
        step = _steps(scales[part])
        found[part] = _squared_lengths(dense[part] - np.rint(dense[part] / step) * step)
    return found


TABQ: Final = TabqKind()
