"""Ladders for tests: whole-number tables, so that their bytes are the same on every machine."""

from typing import Any

import numpy as np
import pytest

from codec.entropy.integers import ALPHABET, ESCAPE, NUM_FAMILIES, REACH, Families
from codec.ladder import Ladder, Level
from codec.levels.calibrated import CalibratedCodec, trellis_models
from codec.levels.lossless import LosslessCodec
from codec.levels.split_model import SplitModel
from codec.levels.tabq import TabqCodec

D = 16


def whole_number_families() -> Families:
    """Family k: frequency falls by half every 1 + k // 4 symbols from the middle."""
    freqs = np.ones((NUM_FAMILIES, ALPHABET), dtype=np.int64)
    for family in range(NUM_FAMILIES):
        for symbol in range(ESCAPE):
            freqs[family, symbol] += 6000 >> abs(symbol - REACH) // (1 + family // 4)
        scaled = freqs[family] * 16384 // freqs[family].sum()
        freqs[family] = np.maximum(1, scaled)
        freqs[family, REACH] += 16384 - freqs[family].sum()
    cdf = np.concatenate([np.zeros((NUM_FAMILIES, 1), np.int64), freqs.cumsum(1)], axis=1)
    return Families.from_cdf(cdf.astype(np.uint16))


def small_model(*, num_blocks: int = 1) -> SplitModel:
    """D = 16, a signed permutation as rotation, two listed tokens."""
    size = D // num_blocks
    rotation = np.stack(
        [np.roll(np.eye(size, dtype=np.float32), 1 + n, axis=1) for n in range(num_blocks)]
    )
    order = np.arange(D, dtype=np.int32)
    fields: dict[str, Any] = {
        "mean": np.arange(D, dtype=np.float32) / 4,
        "tau": np.full(D, 64, dtype=np.float32),
        "sigma": 2.0 ** (3 - np.arange(D, dtype=np.float32) / 8),
        "forward": rotation,
        "inverse": np.ascontiguousarray(rotation.swapaxes(1, 2)),
        "order": order if num_blocks == 1 else order[::-1].copy(),
        "token_ids": np.array([5, 9], dtype=np.int32),
        "token_codes": np.arange(2 * D, dtype=np.int8).reshape(2, D),
        "token_scale": np.full(D, 0.125, dtype=np.float32),
        "sensitivity": np.linspace(-0.5, 0.5, D + 1, dtype=np.float32),
    }
    return SplitModel(**fields)


def small_ladder() -> Ladder:
    """lossless, two calibrated steps, TAB-Q packed, TAB-Q with entropy coding and with tau."""
    families, model = whole_number_families(), small_model()
    models = trellis_models(np.repeat(families.models.cdf, 2, axis=0), slope=0.25)
    centres = np.zeros((NUM_FAMILIES, 4), dtype=np.float32)
    centres[:, 1:] = -0.0625
    tau = np.full(D, 3, dtype=np.float32)
    levels = (
        Level(name="lossless", codec=LosslessCodec(hidden_size=D)),
        Level(name="fine", codec=CalibratedCodec.build(model, 0.0625, models, centres)),
        Level(name="coarse", codec=CalibratedCodec.build(model, 1.0, models, centres)),
        Level(name="packed", codec=TabqCodec(hidden_size=D, delta=0.05, top_k=2), extra=True),
        Level(
            name="tabq",
            codec=TabqCodec(hidden_size=D, delta=0.1, top_k=2, families=families),
            extra=True,
        ),
        Level(
            name="tau",
            codec=TabqCodec(hidden_size=D, delta=0.1, tau=tau, families=families),
            extra=True,
        ),
        Level(
            name="expecting",
            codec=TabqCodec(
                hidden_size=D,
                delta=0.1,
                tau=tau * 16,
                families=families,
                centre=np.arange(-8, D - 8, dtype=np.float32),
                eighths=np.arange(D, dtype=np.int32),
            ),
            extra=True,
        ),
    )
    return Ladder(hidden_size=D, levels=levels, tables_sha256="00" * 32, safe_level="tabq")


@pytest.fixture(scope="session")
def ladder() -> Ladder:
    return small_ladder()


@pytest.fixture(scope="session")
def families() -> Families:
    return whole_number_families()


@pytest.fixture(params=[1, 4], ids=["dense rotation", "block rotation"])
def model(request: pytest.FixtureRequest) -> SplitModel:
    return small_model(num_blocks=request.param)
