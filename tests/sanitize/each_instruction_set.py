"""A pytest plugin: tests of whole layers run once with every instruction set of this processor."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from cloud.kernel import library as native

_FILES = ("test_native.py", "test_native_stack.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Leave out what has its own choice, and what runs in other processes."""
    kernel = native.load()
    name = str(metafunc.module.__file__)
    elsewhere = "run_python" in metafunc.function.__code__.co_names
    if kernel is not None and name.endswith(_FILES) and not elsewhere:
        kinds = range(1, int(kernel._library.sp_available()) + 1)
        metafunc.fixturenames.append("instruction_set")
        metafunc.parametrize("instruction_set", kinds, indirect=True)


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    """The process's kernel runs the loops of one instruction set."""
    kernel = native.load()
    assert kernel is not None
    before = kernel._kind
    kernel._kind = ctypes.c_int32(request.param)
    yield
    kernel._kind = before
