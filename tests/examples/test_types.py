"""The examples of the Python API pass a strict type checker, as a user's own program would."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.examples.loading import EXAMPLES

TYPED = ("async_api", "device_loop", "python_api", "terminal_chat")


def test_the_examples_pass_strict_mypy() -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    files = [str(EXAMPLES / f"{name}.py") for name in TYPED]
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *files]
    finished = subprocess.run(
        command, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
