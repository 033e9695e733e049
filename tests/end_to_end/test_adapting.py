"""Rows predicted from a session's earlier ones, through a server: fewer bytes, the same story."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud.sessions.model_sessions import ModelSessions
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from optimizer.artifacts.bundle import write_manifest
from optimizer.export.calibration.calibrate import calibrate
from optimizer.export.layers.layered_model import LayeredModel
from tests.end_to_end.servers import running_server

PROMPT = "one two three, one two three, one two three, one two three, one two three, one two"
REQUEST = CompletionRequest(max_new_tokens=40, level="q2", draft="off", ignore_eos=True)


@pytest.fixture(scope="module")
def bundles(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Edge and cloud bundles with the levels of split 2."""
    bench = tiny("llama")
    root = tmp_path_factory.mktemp("adapting")
    tables = root / "split-2.tables"
    calibrate(LayeredModel(bench.source, folder=root), split=2, out=tables, num_tokens=1024)
    copies = root / "edge", root / "cloud"
    for copy, built in zip(copies, (bench.edge_bundle(2), bench.cloud_bundle()), strict=True):
        shutil.copytree(built, copy)
        (copy / "codec").mkdir()
        shutil.copy(tables, copy / "codec")
        write_manifest(copy)
    return copies


def num_bytes(completion: Any) -> int:
    return sum(step.hidden_bytes for step in completion.steps)


def test_a_prompt_that_repeats_takes_fewer_bytes_and_comes_out_alike_again(
    bundles: tuple[Path, Path],
) -> None:
    """The second time the server holds the prompt's beginning, and its rows with it."""
    edge, cloud = bundles
    with (
        running_server(cloud) as server,
        EdgeClient(edge, server.address, prefill_chunk=16) as client,
    ):
        plain = client.complete(PROMPT, replace(REQUEST, adapt=False))
        first, second = (client.complete(PROMPT, REQUEST) for _ in range(2))
        num_sent = [len(run.steps) for run in (first, second)]
    assert num_bytes(first) < num_bytes(plain)
    assert second.token_ids == first.token_ids
    assert num_sent[1] < num_sent[0]
    assert first.to_json()["level_counts"].keys() == {"q2"}


def test_a_server_that_holds_no_rows_gets_plain_frames(
    bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of an earlier version: it ignores what the Open asks."""
    edge, cloud = bundles
    reserve = ModelSessions.reserve

    def earlier(self: ModelSessions, request: Any, *rest: Any) -> Any:
        return reserve(self, replace(request, recall=False), *rest)

    monkeypatch.setattr(ModelSessions, "reserve", earlier)
    with (
        running_server(cloud) as server,
        EdgeClient(edge, server.address, prefill_chunk=16) as client,
    ):
        plain = client.complete(PROMPT, replace(REQUEST, adapt=False))
        refused = [client.complete(PROMPT, REQUEST) for _ in range(2)]
    for run in refused:
        assert run.token_ids == plain.token_ids
        assert run.reconnects == 0
