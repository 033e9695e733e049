"""Whether 16-bit products are computed as such is asked of the kernels, and of the processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hwprofiles.errors import UnknownKernelError
from hwprofiles.profiler import half_probe
from hwprofiles.profiler.half_probe import computes_halves, has_half_arithmetic
from hwprofiles.profiler.kernel_runs import KernelSettings, run_half_product
from hwprofiles.providers.table import CUDA, OPENVINO


def added_in_halves(rows: Any, matrix: Any, _settings: Any) -> Any:
    total = np.zeros((len(rows), matrix.shape[1]), dtype=np.float16)
    for k in range(len(matrix)):
        total = total + rows[:, k : k + 1] * matrix[k : k + 1]
    return total.astype(np.float32)


def widened(rows: Any, matrix: Any, _settings: Any) -> Any:
    return rows.astype(np.float32) @ matrix.astype(np.float32)


def rounded_once(rows: Any, matrix: Any, _settings: Any) -> Any:
    return widened(rows, matrix, None).astype(np.float16).astype(np.float32)


def unknown(*_: Any) -> Any:
    raise UnknownKernelError("no such kernel")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    computes_halves.cache_clear()
    yield
    computes_halves.cache_clear()


@pytest.mark.parametrize(
    ("kernel", "has_instructions", "answer"),
    [
        (added_in_halves, True, True),
        (added_in_halves, False, False),
        (widened, True, False),
        (rounded_once, True, False),
        (unknown, True, False),
    ],
)
def test_the_cpu_is_asked(
    monkeypatch: pytest.MonkeyPatch,
    kernel: Callable[..., Any],
    has_instructions: bool,
    answer: bool,
) -> None:
    monkeypatch.setattr(half_probe, "has_half_arithmetic", lambda: has_instructions)
    monkeypatch.setattr(half_probe, "run_half_product", kernel)
    assert computes_halves() is answer


def test_of_other_providers_the_table_says_it() -> None:
    assert computes_halves(CUDA)
    assert not computes_halves(OPENVINO)


def test_this_machine_s_kernels_give_the_product() -> None:
    rows, matrix = np.ones((2, 8), np.float16), np.full((8, 3), 0.5, np.float16)
    found = run_half_product(rows, matrix, KernelSettings(1))
    assert np.array_equal(found, np.full((2, 3), 4.0))


@pytest.mark.parametrize(
    ("machine", "system", "words", "answer"),
    [
        ("x86_64", "linux", 1 << 10, False),
        ("aarch64", "linux", 1 << 10, True),
        ("aarch64", "linux", 0b11, False),
        ("arm64", "darwin", 0, True),
        ("arm64", "win32", 1 << 10, False),
    ],
)
def test_the_processor_must_have_the_instructions(
    monkeypatch: pytest.MonkeyPatch, machine: str, system: str, words: int, answer: bool
) -> None:
    def getauxval(kind: int) -> int:
        return words if kind == half_probe.HWCAP else 0

    library = SimpleNamespace(getauxval=getauxval)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    assert has_half_arithmetic() is answer
