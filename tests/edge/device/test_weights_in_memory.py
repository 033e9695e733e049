"""Weights are in memory once: what the kernels packed, and nothing beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.edge.seeded_front import write_seeded_front
from edge.device.front import FrontEngine
from edge.device.mapped_pages import MappedFiles

ROOT = Path(__file__).parents[3]
SIZES = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip
# Of the session, the cache and a step's work space: less than half of the weights' bytes here.
REST_BYTES = 7 << 20
MEASURE = """
import json, sys
from pathlib import Path
from benchmarks.edge.weights_in_memory import measure
print(json.dumps(measure(Path(sys.argv[1]), keep_pages=False)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's /proc")
@pytest.mark.parametrize(("bits", "most"), [(4, 0.62), (8, 1.1)])
def test_a_weight_is_in_memory_once(bits: int, most: float, tmp_path: Path) -> None:
    write_seeded_front(tmp_path, bits=bits, blocks="large", **SIZES)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    figures = json.loads(found.stdout)
    weights = figures["num_weights"]
    assert figures["planned"] <= most * weights
    assert 0.97 * figures["planned"] < figures["bytes"] < most * weights + REST_BYTES
    assert weights * bits / 8 > REST_BYTES  # a second copy of the codes alone would show


@pytest.mark.parametrize("bits", [4, 8])
def test_pages_that_are_given_back_change_no_bit(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_seeded_front(tmp_path, bits=bits, blocks="large", **SIZES)
    steps = [np.arange(3, 40), np.array([7]), np.array([9, 11])]
    (giving,) = FrontEngine.load(tmp_path, plan=plan, threads=1)
    given = [giving.forward(step) for step in steps]
    monkeypatch.setattr(MappedFiles, "release", lambda self: None)
    (keeping,) = FrontEngine.load(tmp_path, plan=plan, threads=1)
    for step, rows in zip(steps, given, strict=True):
        np.testing.assert_array_equal(keeping.forward(step), rows)
