"""`splitpoint bench`: what it measures and refuses, and where its rate-quality part lives."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from optimizer.errors import BuildError
from optimizer.export.bundle_builder import build_bundle
from splitpoint.cli import main
from splitpoint.commands.bench import RATE_QUALITY, _rate_quality, codec

FEW = ("--repeats", "2")


def test_bits_against_quality_need_tables_and_a_text(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no codec tables"):
        _rate_quality(tmp_path, tmp_path, tmp_path / "text", 512, None)
    with pytest.raises(typer.BadParameter, match="--model and --text"):
        codec(bundle=tmp_path)


def test_the_benchmark_it_runs_is_in_the_repository() -> None:
    assert "--baselines" in RATE_QUALITY.read_text(encoding="utf-8")


def test_decode_and_server_print_one_object_each(
    capsys: pytest.CaptureFixture[str], tiny: Any, tmp_path: Path
) -> None:
    bench = tiny("llama")
    bundle = tmp_path / "bundle"
    build_bundle(bench.source, bench.plan(2), bundle, progress=lambda stage: None)
    assert main(["bench", "server", str(bundle), "--sessions", "1,2", "--json", *FEW]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert [result["sessions"] for result in steps["results"]] == [1, 2]
    assert all(result["tokens_per_s"] > 0 for result in steps["results"])
    assert main(["bench", "decode", str(bundle), "--tokens", "4", "--json", *FEW]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["tokens"] == 4
    assert {"front", "encode", "wire", "cloud_compute"} <= set(answer["step_s"])


def test_sessions_that_are_no_numbers_are_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "server", "nowhere", "--sessions", "1,x"]) == 2
    assert "1,8,32" in capsys.readouterr().err
    assert main(["bench", "server", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
