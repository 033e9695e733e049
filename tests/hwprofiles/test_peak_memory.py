"""The high-water mark is this process's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hwprofiles.peak_memory import STATUS, peak_memory_bytes

MIB = 1 << 20
needs_proc = pytest.mark.skipif(not STATUS.exists(), reason="no /proc on this system")


def test_it_grows_with_what_is_held_and_stays() -> None:
    before = peak_memory_bytes()
    held = np.ones(before + 32 * MIB, dtype=np.uint8)  # more than was ever held
    after = peak_memory_bytes()
    del held
    assert after >= before + 32 * MIB
    assert peak_memory_bytes() >= after - MIB  # the kernel counts pages roughly


@needs_proc
def test_a_program_does_not_begin_with_the_mark_of_the_one_that_starts_it() -> None:
    held = np.ones(256 * MIB, dtype=np.uint8)
    code = "from hwprofiles.peak_memory import peak_memory_bytes; print(peak_memory_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    del held
    assert int(child.stdout) < 128 * MIB


def test_without_proc_it_asks_the_resource_usage(tmp_path: Path) -> None:
    assert peak_memory_bytes(tmp_path / "nothing") > MIB
