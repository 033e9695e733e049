"""A server over two ranks: its tokens, what it says of itself, and its end when a rank dies."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import psutil
import pytest
import torch

from cloud.errors import StartError
from cloud.server.config import choose_devices
from cloud.server.process import serving
from hwprofiles.machine_limits import usable_cpus
from tests.cloud.serving import PROMPT, RawStream, Served, connected, frame_of, generate, run, until


def test_two_ranks_give_the_whole_models_tokens_and_a_dead_one_ends_the_server(
    served: Served,
) -> None:
    async def scenario() -> None:
        config = replace(served.config, tensor_parallel=2, device="cpu")
        before = {child.pid for child in psutil.Process().children()}
        async with connected(config) as (server, channel):
            assert server.facts["device"] == "2 x cpu"
            assert not server.facts["native"]
            assert server.facts["kv_bytes"] == config.kv_memory_bytes
            (rank,) = [c for c in psutil.Process().children() if c.pid not in before]
            stream = await RawStream(channel).open()
            tokens = await generate(served, stream, PROMPT, 5)
            assert tokens == served.front.greedy(PROMPT, 5)
            rank.kill()
            await stream.send(frame_of(served, 6, [*PROMPT, *tokens], len(PROMPT) + 4))
            code, reason = await stream.refused()
            # Whichever comes first: the step that fails, or the supervisor.
            assert code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
            assert "rank 1 has ended (killed by signal 9)" in reason
            await until(server.failure.done)
            assert server.failure.result().startswith("the process of rank 1 has ended")
        assert not psutil.pid_exists(rank.pid)

    threads = torch.get_num_threads()
    try:
        run(scenario)
    finally:
        torch.set_num_threads(threads)


def test_more_ranks_than_cores_or_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = usable_cpus()
    assert choose_devices("cpu", cores) == ["cpu"] * cores
    with pytest.raises(StartError, match=f"this process may use {cores} cores"):
        choose_devices("cpu", cores + 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_devices("auto", 1) == ["cuda"]
    assert choose_devices("auto", 2) == ["cuda:0", "cuda:1"]
    with pytest.raises(StartError, match=r"--tensor-parallel 3: torch finds 2 CUDA device"):
        choose_devices("cuda", 3)


def test_a_model_that_cannot_be_divided_is_refused_before_any_process_starts(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.server.config.usable_cpus", lambda: 3)
    before = psutil.Process().children()

    async def scenario() -> None:
        with pytest.raises(StartError, match="by --tensor-parallel 3: num_attention_heads is 4"):
            async with serving(replace(served.config, tensor_parallel=3, device="cpu")):
                pass

    asyncio.run(scenario())
    assert psutil.Process().children() == before
