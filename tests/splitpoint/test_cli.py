"""The command as a user meets it: results on stdout, one clear line for every mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from splitpoint.cli import main
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer

SPLIT = 2


@pytest.fixture(scope="module")
def bundle(bench: ModelBench) -> Path:
    return bench.edge_bundle(SPLIT)


def failing(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status and the one line on stderr; nothing may be on stdout."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return status, lines[0]


def test_run_prints_one_json_object_with_the_promised_fields(
    capsys: pytest.CaptureFixture[str], bundle: Path, server: RunningServer, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"
    arguments = ["run", str(bundle), "--server", server.address, "--prompt", "hello there"]
    assert main([*arguments, "--max-new-tokens", "6", "--json", "--trace", str(trace)]) == 0
    report = json.loads(capsys.readouterr().out)
    promised = (
        "text tokens finish_reason prompt_tokens ttft_s tbt_p50_s tbt_p95_s tokens_per_s "
        "uplink_bytes downlink_bytes bits_per_element round_trips tokens_per_round_trip edge_s "
        "wire_s cloud_s reconnects peak_memory_bytes level_counts"
    )
    assert set(promised.split()) <= set(report)
    assert report["finish_reason"] in ("length", "stop")
    assert report["prompt_tokens"] == len("hello there")
    assert report["uplink_bytes"] > report["prompt_tokens"] * 64 * 3
    steps = [json.loads(line) for line in trace.read_text().splitlines()]
    assert len(steps) == sum(report["level_counts"].values())
    assert {"front_s", "encode_s", "wire_s", "cloud_queue_s", "cloud_compute_s"} <= set(steps[0])


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(
    capsys: pytest.CaptureFixture[str], bundle: Path, server: RunningServer
) -> None:
    def tokens(seed: int) -> list[int]:
        arguments = ["run", str(bundle), "--server", server.address, "--prompt", "abc", "--json"]
        sampling = ["--temperature", "1.5", "--seed", str(seed), "--max-new-tokens", "12"]
        assert main([*arguments, *sampling]) == 0
        drawn: list[int] = json.loads(capsys.readouterr().out)["tokens"]
        return drawn

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_a_missing_bundle_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, line = failing(capsys, "run", tmp_path / "none", "--prompt", "x")
    assert (status, "no such bundle" in line) == (1, True)


def test_a_missing_file_in_a_bundle_is_named(
    capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "edge" / "tokenizer.json").unlink()
    status, line = failing(capsys, "run", copy, "--server", "127.0.0.1:1", "--prompt", "x")
    assert (status, "edge/tokenizer.json is missing" in line) == (1, True)


def test_a_changed_byte_in_a_bundle_is_found(
    capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    weights = copy / "edge" / "front.onnx.data"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    status, line = failing(capsys, "run", copy, "--server", "127.0.0.1:1", "--prompt", "x")
    assert status == 1
    assert "edge/front.onnx.data was changed" in line


def test_a_server_with_another_model_is_refused_naming_both(
    capsys: pytest.CaptureFixture[str], tiny: Any, server: RunningServer, bench: ModelBench
) -> None:
    other: ModelBench = tiny("qwen2")
    bundle = other.edge_bundle(SPLIT)
    capsys.readouterr()  # what building it said
    status, line = failing(capsys, "run", bundle, "--server", server.address, "--prompt", "x")
    assert status == 1
    assert other.source.sha256[:12] in line
    assert bench.source.sha256[:12] in line


def test_a_prompt_beyond_the_plan_is_refused_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    status, line = failing(capsys, "run", bundle, "--server", "127.0.0.1:1", "--prompt", "x" * 250)
    assert status == 1
    assert "250 tokens" in line
    assert "200" in line


def test_an_unreachable_server_is_named(
    capsys: pytest.CaptureFixture[str], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimizer.policy.retry import RetryPolicy

    monkeypatch.setattr("edge.client.RetryPolicy", lambda: RetryPolicy(connect_s=0.5))
    status, line = failing(
        capsys, "run", bundle, "--server", "127.0.0.1:1", "--prompt", "x", "--max-new-tokens", "4"
    )
    assert status == 1
    assert "127.0.0.1:1" in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run", "BUNDLE", "--prompt", "x", "--frobnicate"], "frobnicate"),
        (["run", "BUNDLE", "--server", "h:1"], "exactly one of --prompt"),
        (["run", "BUNDLE", "--prompt", "x", "--temperature", "-1"], "temperature"),
        (["run", "BUNDLE", "--prompt", "x", "--max-new-tokens", "0"], "max-new-tokens"),
        (["nonsense"], "nonsense"),
        (["build", "--model", "m", "--out", "o"], "--split"),
        (["build", "--model", "m", "--out", "o", "--split", "2", "--back-bits", "4"], "8, 16, 32"),
        (["build", "--model", "m", "--out", "o", "--split", "2", "--kv-bits", "7"], "8, 16, 32"),
    ],
)
def test_bad_usage_exits_with_2(
    capsys: pytest.CaptureFixture[str], bundle: Path, arguments: list[str], reason: str
) -> None:
    status, line = failing(capsys, *[str(bundle) if a == "BUNDLE" else a for a in arguments])
    assert status == 2
    assert reason in line


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--split", "9"], "the model has 4 layers"),
        (["--split", "2", "--max-tokens", "100000"], "context of 256"),
        (["--split", "2", "--back-from", "3"], "back start 3"),
    ],
)
def test_builds_that_make_no_sense_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str],
    bench: ModelBench,
    tmp_path: Path,
    options: list[str],
    reason: str,
) -> None:
    folder = bench.source.folder  # type: ignore[attr-defined]
    arguments = ["build", "--model", str(folder), "--out", str(tmp_path / "out"), *options]
    status, line = failing(capsys, *arguments)
    assert status == 1
    assert reason in line
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["build", "--model", tmp_path / "none", "--out", tmp_path / "o", "--split", "1"]
    status, line = failing(capsys, *arguments)
    assert status == 1
    assert str(tmp_path / "none") in line


def test_building_from_the_command_line_makes_a_bundle_that_runs(
    capsys: pytest.CaptureFixture[str], bench: ModelBench, tmp_path: Path, server: RunningServer
) -> None:
    folder = bench.source.folder  # type: ignore[attr-defined]
    out = tmp_path / "bundle"
    options = ["--split", "3", "--front-bits", "8", "--max-tokens", "100", "--no-calibrate"]
    assert main(["build", "--model", str(folder), "--out", str(out), *options]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    arguments = ["run", str(out), "--server", server.address, "--prompt", "abc"]
    assert main([*arguments, "--max-new-tokens", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) <= 3


def test_serving_a_bundle_that_is_whole_on_the_edge_is_refused(
    capsys: pytest.CaptureFixture[str], bench: ModelBench
) -> None:
    status, line = failing(capsys, "serve", bench.edge_bundle(bench.num_layers))
    assert status == 1
    assert "nothing to serve" in line


def test_a_bundle_that_is_whole_on_the_edge_needs_no_server(
    capsys: pytest.CaptureFixture[str], bench: ModelBench
) -> None:
    bundle = bench.edge_bundle(bench.num_layers)
    assert main(["run", str(bundle), "--prompt", "abc", "--max-new-tokens", "5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["uplink_bytes"] == 0
    assert len(report["tokens"]) > 0
