"""The asyncio client gives what the plain one gives, at once and cancellable."""

from __future__ import annotations

import asyncio
import inspect
import time

import pytest

from edge.async_client import AsyncEdgeClient
from edge.client import EdgeClient
from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer, running_server

REQUEST = CompletionRequest(max_new_tokens=12, ignore_eos=True)


def test_pieces_and_outcome_are_the_plain_clients(bench: ModelBench, server: RunningServer) -> None:
    bundle = bench.edge_bundle(2)
    with EdgeClient(bundle, server.address) as client:
        expected = client.complete("tell me", REQUEST)

    async def scene() -> None:
        async with AsyncEdgeClient(bundle, server.address) as client:
            ids = [piece.token_id async for piece in client.stream("tell me", REQUEST)]
            done = await client.complete("tell me", REQUEST)
        assert tuple(ids) == done.token_ids == expected.token_ids

    asyncio.run(scene())


def test_more_answers_than_caches_wait_for_each_other(
    bench: ModelBench, server: RunningServer
) -> None:
    async def scene() -> None:
        async with AsyncEdgeClient(bench.edge_bundle(2), server.address, concurrency=2) as client:
            done = await asyncio.gather(*(client.complete("again", REQUEST) for _ in range(5)))
        assert len({each.token_ids for each in done}) == 1

    asyncio.run(scene())


def test_leaving_the_loop_frees_the_clouds_cache(bench: ModelBench) -> None:
    endless = CompletionRequest(max_new_tokens=150, ignore_eos=True)

    async def scene(address: str) -> None:
        async with AsyncEdgeClient(bench.edge_bundle(2), address) as client:
            stream = client.stream("once", endless)
            async for _ in stream:
                break
            await stream.aclose()
            done = await client.complete("once", REQUEST)  # the only cache is free again
        assert len(done.token_ids) == 12

    with running_server(bench.cloud_bundle()) as server:
        asyncio.run(scene(server.address))
        deadline_s = time.monotonic() + 10
        while server.server.pool.used_bytes and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert server.server.pool.used_bytes == 0


def test_bad_input_is_raised_and_nothing_is_left(bench: ModelBench, server: RunningServer) -> None:
    async def scene() -> None:
        async with AsyncEdgeClient(bench.edge_bundle(2), server.address) as client:
            with pytest.raises(InputError, match="no level"):
                await client.complete("x", CompletionRequest(level="finest"))
            assert (await client.complete("x", REQUEST)).token_ids

    asyncio.run(scene())


def test_it_is_used_with_async_with(bench: ModelBench) -> None:
    client = AsyncEdgeClient(bench.edge_bundle(2), "127.0.0.1:1")
    with pytest.raises(RuntimeError, match="async with"):
        _ = client.client


def test_it_takes_what_the_plain_client_takes() -> None:
    plain, asynchronous = map(inspect.signature, (EdgeClient, AsyncEdgeClient))
    assert asynchronous.parameters == plain.parameters
