"""What tests of `splitpoint plan` ask for, and how they read the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from splitpoint.cli import main

PI = ("--edge", "raspberry-pi-5-8gb", "--cloud", "a100-80gb")
# The least time, without limits on it.
FASTEST = ("--objective", "tbt", "--max-tbt", "none", "--max-ttft", "none")
SMOL_WITH_LIMIT = ("plan", "--model", "smollm2-135m", *PI, *FASTEST)
SMOL = (*SMOL_WITH_LIMIT, "--max-quality-drop", "none")  # tests of other limits


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON object of a plan."""
    assert main([*arguments, "--json"]) == 0
    out: dict[str, Any] = json.loads(capsys.readouterr().out)
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and last line on stderr; nothing on stdout."""
    status = main(list(arguments))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return status, captured.err.strip().splitlines()[-1]
