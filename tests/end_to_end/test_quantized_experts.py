"""Experts with fewer bits, on the device and on the server: close to float32, in any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.int8_experts import Int8Experts
from cloud.kv.pool import KvPool
from optimizer.export.back import write_back
from optimizer.export.back_reference import write_reference
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_front, make_plan
from tests.tiny_models import make_tiny_model

FAMILIES = ("qwen3_moe", "gpt_oss")
IDS = [int(token) for token in np.random.default_rng(8).integers(4, 250, size=24)]


def usual_error(rows: Any, expected: Any) -> float:
    """The median row's relative error. In random models experts lie close, and now and then
    rounding sends a row to another one."""
    differences = np.linalg.norm(rows - expected, axis=-1)
    return float(np.median(differences / np.linalg.norm(expected, axis=-1)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("bits", "most"), [(16, 2e-3), (8, 0.08), (4, 0.5)])
def test_a_rounded_front_stays_close(tmp_path: Path, family: str, bits: int, most: float) -> None:
    make_tiny_model(family, tmp_path / "m")
    source = open_source(tmp_path / "m")
    rows = {}
    for each in (32, bits):
        plan = make_plan(source, 2, max_tokens=48, back_start=0, front_bits=each)
        front = make_front(source, plan, tmp_path / f"front-{each}")
        rows[each] = front.forward(np.array(IDS, dtype=np.int64))
    assert 0 < usual_error(rows[bits], rows[32]) < most


def engine(folder: Path, source: Any, bits: int, *, by_reference: bool = False) -> BackEngine:
    plan = make_plan(source, 0, max_tokens=48, back_start=0, back_bits=bits)
    folder.mkdir()
    (write_reference if by_reference else write_back)(source, plan, folder)
    return BackEngine(load_back(folder, first_layer=0))


def logits(loaded: BackEngine, ids: list[list[int]]) -> list[torch.Tensor]:
    """Of every row of these sessions, in one batch."""
    pool = KvPool(loaded.kv_shape, limit_bytes=1 << 22)
    embedding = loaded.model.embedding
    assert embedding is not None
    batch = [
        BatchEntry(
            lease=pool.lease(split=0, max_tokens=48),
            rows=torch.from_numpy(embedding.rows(one)),
            num_logits=len(one),
        )
        for one in ids
    ]
    return loaded.forward(batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_back_of_8_bits_stays_close_and_does_not_depend_on_the_batch(
    tmp_path: Path, family: str
) -> None:
    whole: Any = make_tiny_model(family, tmp_path / "m")
    source = open_source(tmp_path / "m")
    loaded = engine(tmp_path / "back", source, 8)
    kinds = {type(module) for layer in loaded.model.layers for module in layer.modules()}
    assert Int8Experts in kinds
    with torch.inference_mode():
        expected = whole(torch.tensor([IDS])).logits[0]
    alone = logits(loaded, [IDS])[0]
    assert usual_error(alone.numpy(), expected.numpy()) < 0.1
    beside = logits(loaded, [IDS[:9], IDS, IDS[3:]])[1]
    assert torch.equal(beside, alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_back_by_reference_is_the_same_as_a_copy(tmp_path: Path, family: str) -> None:
    make_tiny_model(family, tmp_path / "m")
    source = open_source(tmp_path / "m")
    copied = engine(tmp_path / "copy", source, 8)
    if family == "qwen3_moe":  # its experts are stored one by one: there is nothing to refer to
        return
    referred = engine(tmp_path / "reference", source, 8, by_reference=True)
    assert torch.equal(logits(copied, [IDS])[0], logits(referred, [IDS])[0])
