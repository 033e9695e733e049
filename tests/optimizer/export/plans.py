"""Plans and built fronts for the tests of the build, and the error they are measured with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.device.front import FrontEngine
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.export.front.front_graph import export_front
from optimizer.export.sources.model_source import ModelSource

Rows = npt.NDArray[np.float32]


def make_plan(
    source: ModelSource,
    split: int,
    *,
    front_bits: int = 32,
    back_bits: int = 32,
    kv_bits: int = 32,
    back_start: int | None = None,
    max_tokens: int = 96,
    exact_front: bool = False,
) -> Plan:
    return Plan(
        model=ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry),
        partition=Partition(split=split, front_bits=front_bits, back_bits=back_bits),
        back_start=split if back_start is None else back_start,
        kv_bits=kv_bits,
        level="lossless",
        max_tokens=max_tokens,
        prefill_chunk=32,
        exact_front=exact_front,
    )


def make_front(source: ModelSource, plan: Plan, folder: Path) -> FrontEngine:
    """Export `plan`'s front into `folder` and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    export_front(source, plan, folder)
    return FrontEngine.load(folder, plan=plan, threads=1)[0]


def worst_row_error(rows: Rows, expected: Rows) -> float:
    """The largest relative error of a row: its difference's length over its own. [T, D] each."""
    assert rows.shape == expected.shape
    difference = np.linalg.norm(rows - expected, axis=-1)
    return float((difference / np.linalg.norm(expected, axis=-1)).max())
