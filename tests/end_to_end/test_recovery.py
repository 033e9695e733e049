"""Real processes, real kills, a real bad link: the tokens stay those of the undisturbed run."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

import pytest

from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest, CompletionRun
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from optimizer.policy.retry import RetryPolicy
from tests.conftest import ModelBench
from tests.end_to_end.servers import running_server
from tests.waiting import comes_true
from tests.warm_python import SPLITPOINT, WarmProcess

PROMPT = "a story about a link that breaks"
REQUEST = CompletionRequest(
    max_new_tokens=60, sampling=SamplingParams(temperature=0.9, seed=5, repetition_penalty=1.1)
)
PATIENT = RetryPolicy(connect_s=30, step_s=5, recover_s=60)
FAST_LINK = LinkShape.fixed(rtt_s=0.004, up_bytes_per_s=2.5e6, down_bytes_per_s=2.5e6)


@pytest.fixture(scope="module")
def undisturbed(bench: ModelBench) -> tuple[int, ...]:
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(2), server.address) as client,
    ):
        completion = client.complete(PROMPT, REQUEST)
    assert completion.reconnects == 0
    return completion.token_ids


class ServerProcess:
    """`splitpoint serve` in a process that can be killed for good."""

    def __init__(self, bundle: Path, port: int = 0) -> None:
        arguments = ["serve", bundle, "--listen", f"127.0.0.1:{port}", "--kv-memory", "64MiB"]
        self._process = WarmProcess(SPLITPOINT, arguments, stdout=subprocess.PIPE)
        if self._process.stdout is None:
            raise RuntimeError("no pipe")
        line = self._process.stdout.readline()
        self.port = int(line.rpartition(":")[2])

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def test_a_server_killed_and_started_again_changes_no_token(
    bench: ModelBench, undisturbed: tuple[int, ...]
) -> None:
    server = ServerProcess(bench.cloud_bundle())
    with EdgeClient(
        bench.edge_bundle(2), f"127.0.0.1:{server.port}", retry_policy=PATIENT
    ) as client:
        run = client.start(PROMPT, REQUEST)
        for index, _ in enumerate(run):
            if index == 10:
                server.kill()
                server = ServerProcess(bench.cloud_bundle(), server.port)
    server.kill()
    assert run.completion.token_ids == undisturbed
    assert run.completion.reconnects == 1


def test_cut_connections_change_no_token(bench: ModelBench, undisturbed: tuple[int, ...]) -> None:
    with (
        running_server(bench.cloud_bundle()) as server,
        EmulatedLink(target=("127.0.0.1", server.server.port), shape=FAST_LINK) as link,
        EdgeClient(
            bench.edge_bundle(2), f"127.0.0.1:{link.address[1]}", retry_policy=PATIENT
        ) as client,
    ):
        run = client.start(PROMPT, REQUEST)
        for index, _ in enumerate(run):
            if index in (0, 7, 8, 30):
                link.drop_connections()
        pool = server.server.pool
        assert run.completion.token_ids == undisturbed
        assert run.completion.reconnects >= 3
        assert comes_true(lambda: pool.used_bytes == 0)


def test_a_silent_link_is_noticed_and_the_next_address_takes_over(
    bench: ModelBench, undisturbed: tuple[int, ...]
) -> None:
    """The first path stops carrying bytes without closing anything: a half-open connection."""
    impatient = RetryPolicy(connect_s=10, step_s=0.5, recover_s=30)
    with (
        running_server(bench.cloud_bundle()) as first,
        running_server(bench.cloud_bundle()) as second,
        EmulatedLink(target=("127.0.0.1", first.server.port), shape=FAST_LINK) as link,
        EdgeClient(
            bench.edge_bundle(2),
            [f"127.0.0.1:{link.address[1]}", second.address],
            retry_policy=impatient,
        ) as client,
    ):
        run = client.start(PROMPT, REQUEST)
        for index, _ in enumerate(run):
            if index == 12:
                link.pause()
        assert run.completion.token_ids == undisturbed
        assert run.completion.reconnects >= 1


def test_a_server_that_never_comes_back_leaves_the_text_so_far(
    bench: ModelBench, undisturbed: tuple[int, ...]
) -> None:
    server = ServerProcess(bench.cloud_bundle())
    short = RetryPolicy(connect_s=5, step_s=5, recover_s=0.5)
    with EdgeClient(bench.edge_bundle(2), f"127.0.0.1:{server.port}", retry_policy=short) as client:
        run = client.start(PROMPT, REQUEST)
        for index, _ in enumerate(run):
            if index == 10:
                server.kill()
    completion = run.completion
    assert completion.finish_reason == "server_lost"
    assert "no way back within 0.5 s" in completion.finish_detail
    assert completion.token_ids == undisturbed[: len(completion.token_ids)]
    assert 11 <= len(completion.token_ids) < 60


def test_walking_away_frees_the_clouds_cache(bench: ModelBench) -> None:
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(2), server.address) as client,
    ):
        run: CompletionRun = client.start(PROMPT, REQUEST)
        pieces = iter(run)
        next(pieces)
        assert server.server.pool.used_bytes > 0
        pieces.close()  # type: ignore[attr-defined]
        assert run.completion.finish_reason == "cancelled"
        assert comes_true(lambda: server.server.pool.used_bytes == 0)


def test_a_full_server_is_waited_for(bench: ModelBench, undisturbed: tuple[int, ...]) -> None:
    """Room for one session: the second is told to come again, and gets its turn."""
    one_session = 100 << 10
    with (
        running_server(bench.cloud_bundle(), kv_memory_bytes=one_session) as server,
        EdgeClient(bench.edge_bundle(2), server.address, concurrency=2) as client,
    ):
        answers: list[tuple[int, ...]] = []

        def ask() -> None:
            answers.append(client.complete(PROMPT, REQUEST).token_ids)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [undisturbed, undisturbed]
