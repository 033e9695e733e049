"""A model of the device's own answers when no server is to be had, and says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud.server.process import ServerConfig
from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.errors import ConnectError, InputError, RefusedError
from edge.generation.completion import CompletionRequest, CompletionRun
from optimizer.policy.retry import RetryPolicy
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer, running_server

PROMPT = [5, 17, 90, 33, 8, 61, 12, 44]
SAMPLED = CompletionRequest(
    max_new_tokens=40,
    ignore_eos=True,
    sampling=SamplingParams(temperature=0.9, seed=5, repetition_penalty=1.1),
)
HASTY = RetryPolicy(connect_s=0.3, recover_s=0.3, step_s=5)
NOWHERE = "127.0.0.1:9"


@pytest.fixture(scope="module")
def bench(tiny: Any) -> ModelBench:
    made: ModelBench = tiny("llama")
    return made


@pytest.fixture(scope="module")
def whole(bench: ModelBench) -> Path:
    return bench.edge_bundle(bench.num_layers)


@pytest.fixture
def server(bench: ModelBench) -> Iterator[RunningServer]:
    with running_server(bench.cloud_bundle()) as running:
        yield running


def run_to_end(run: CompletionRun) -> CompletionRun:
    for _ in run:
        pass
    return run


def client_of(bench: ModelBench, address: str, fallback: Path | None, **more: Any) -> EdgeClient:
    return EdgeClient(bench.edge_bundle(2), address, fallback=fallback, retry_policy=HASTY, **more)


def test_a_server_lost_in_the_middle_changes_no_token_where_the_weights_are_the_same(
    bench: ModelBench, whole: Path
) -> None:
    with EdgeClient(whole) as alone:
        expected = run_to_end(alone.start_ids(PROMPT, SAMPLED)).completion
    assert expected.answered_by == "edge"
    server = RunningServer(ServerConfig(bundle=bench.cloud_bundle(), port=0))
    server.start()
    client = client_of(bench, server.address, whole)
    run = client.start_ids(PROMPT, SAMPLED)
    for index, _ in enumerate(run):
        if index == 9:
            server.stop()
    done = run.completion
    assert done.token_ids == expected.token_ids
    assert (done.finish_reason, done.answered_by) == ("length", "edge")
    assert "own model answered from token" in done.finish_detail
    client.close()


def test_a_server_that_is_not_there_is_not_needed(bench: ModelBench, whole: Path) -> None:
    with client_of(bench, NOWHERE, whole) as client:
        done = run_to_end(client.start_ids(PROMPT, SAMPLED)).completion
    assert (done.finish_reason, done.answered_by) == ("length", "edge")
    assert "from token 1 on" in done.finish_detail
    with EdgeClient(bench.edge_bundle(2), fallback=whole) as client:
        alone = run_to_end(client.start_ids(PROMPT, SAMPLED)).completion
    assert alone.token_ids == done.token_ids
    assert alone.finish_detail == ""


def test_with_a_server_there_the_split_answers_unless_the_edge_is_preferred(
    bench: ModelBench, whole: Path, server: RunningServer
) -> None:
    with client_of(bench, server.address, whole) as client:
        split = run_to_end(client.start_ids(PROMPT, SAMPLED)).completion
        request = CompletionRequest(
            max_new_tokens=40, ignore_eos=True, sampling=SAMPLED.sampling, prefer="edge"
        )
        edge = run_to_end(client.start_ids(PROMPT, request)).completion
        cloud = CompletionRequest(max_new_tokens=4, ignore_eos=True, prefer="cloud")
        assert run_to_end(client.start_ids(PROMPT, cloud)).completion.answered_by == "cloud"
    assert (split.answered_by, edge.answered_by) == ("split", "edge")
    assert edge.token_ids == split.token_ids
    assert not any(step.uplink_bytes for step in edge.steps)


def test_a_refusal_is_told_and_not_covered(bench: ModelBench, whole: Path, tiny: Any) -> None:
    other: ModelBench = tiny("qwen3")
    with (
        running_server(other.cloud_bundle()) as server,
        client_of(bench, server.address, whole) as client,
        pytest.raises(RefusedError),
    ):
        run_to_end(client.start_ids(PROMPT, SAMPLED))


def test_a_fallback_that_holds_too_few_tokens_leaves_the_loss_as_it_is(bench: ModelBench) -> None:
    small = bench.edge_bundle(bench.num_layers, max_tokens=len(PROMPT) + 10)
    with client_of(bench, NOWHERE, small) as client:
        run = run_to_end(client.start_ids(PROMPT, SAMPLED))
    assert run.completion.finish_reason == "server_lost"
    assert len(run.completion.token_ids) == 10
    with (
        client_of(bench, NOWHERE, small) as client,
        pytest.raises(ConnectError),
    ):
        run_to_end(client.start_ids(PROMPT * 3, SAMPLED))


def test_what_is_no_fallback_is_refused(bench: ModelBench, tiny: Any) -> None:
    with pytest.raises(InputError, match="a fallback must lie wholly on the edge"):
        client_of(bench, NOWHERE, bench.edge_bundle(1))
    with client_of(bench, NOWHERE, None) as client, pytest.raises(InputError, match="--fallback"):
        client.start_ids(PROMPT, CompletionRequest(prefer="edge"))


def test_a_bundle_that_needs_no_server_needs_no_fallback(bench: ModelBench, whole: Path) -> None:
    small = bench.edge_bundle(bench.num_layers, max_tokens=len(PROMPT) + 10)
    with EdgeClient(whole, fallback=small) as client:
        done = run_to_end(client.start_ids(PROMPT, SAMPLED)).completion
    assert (done.finish_reason, len(done.token_ids)) == ("length", 40)


def test_a_fallback_that_was_asked_for_and_is_full_ends_by_length(bench: ModelBench) -> None:
    small = bench.edge_bundle(bench.num_layers, max_tokens=len(PROMPT) + 10)
    with EdgeClient(bench.edge_bundle(2), fallback=small) as client:
        done = run_to_end(client.start_ids(PROMPT, SAMPLED)).completion
    assert (done.finish_reason, len(done.token_ids)) == ("length", 10)
    assert "holds no more tokens" in done.finish_detail


def test_what_is_refused_while_loading_leaves_no_thread(bench: ModelBench) -> None:
    before = set(threading.enumerate())
    with pytest.raises(InputError, match="a fallback must lie wholly on the edge"):
        client_of(bench, NOWHERE, bench.edge_bundle(1), keep_connected=True)
    assert "connection-keeper" not in {
        thread.name for thread in set(threading.enumerate()) - before
    }


def test_a_closed_client_says_so(bench: ModelBench) -> None:
    client = client_of(bench, NOWHERE, None)
    client.close()
    with pytest.raises(RefusedError, match="the connection is closed"):
        run_to_end(client.start_ids(PROMPT, SAMPLED))
