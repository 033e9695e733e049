"""`splitpoint bench codec`: what it refuses, and where its rate-quality part lives."""

from pathlib import Path

import pytest
import typer

from optimizer.errors import BuildError
from splitpoint.commands.bench import RATE_QUALITY, _rate_quality, codec


def test_bits_against_quality_need_tables_and_a_text(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no codec tables"):
        _rate_quality(tmp_path, tmp_path, tmp_path / "text", 512, None)
    with pytest.raises(typer.BadParameter, match="--model and --text"):
        codec(bundle=tmp_path)


def test_the_benchmark_it_runs_is_in_the_repository() -> None:
    assert "--baselines" in RATE_QUALITY.read_text(encoding="utf-8")
