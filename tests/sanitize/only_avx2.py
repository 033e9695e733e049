"""A pytest plugin: the server's kernel runs its AVX2 loops, whatever else this processor has."""

from __future__ import annotations

import ctypes

from cloud.kernel import library as native


def pytest_configure() -> None:
    """Change the one kernel of the process before a test asks for it."""
    kernel = native.load()
    if kernel is not None:
        kernel._kind = ctypes.c_int32(1)
