"""What a server offers to devices that pull: its list, to whom, how much at once, and no more."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud.errors import CapacityError, PullError
from cloud.server.access import Access
from cloud.server.byte_budget import ByteBudget
from cloud.server.offered_files import OfferedFiles
from cloud.server.process import ServerConfig
from cloud.server.pulls import MAX_PULLS, MAX_PULLS_PER_PEER, Pulls
from cloud.sessions.tenants import ANONYMOUS, Tenant, Tenants
from optimizer.artifacts.bundle import open_bundle, write_manifest
from protos.pull import (
    FETCH_PATH,
    LIST_FILES_PATH,
    MAX_CHUNK_BYTES,
    FetchRequest,
    decode_file_chunk,
    decode_file_list,
    encode_fetch_request,
    encode_list_files_request,
)
from tests.cloud.serving import (
    PROMPT,
    RawStream,
    Served,
    calls_of,
    channel_to,
    connected,
    generate,
    run,
    until,
)

FRONT = bytes(range(256)) * 2000
TOKEN = (("authorization", "Bearer s3cr3t"),)


@pytest.fixture
def bundle(served: Served, tmp_path: Path) -> Path:
    """The server's bundle with files of a device."""
    folder = tmp_path / "bundle"
    shutil.copytree(served.config.bundle, folder)
    (folder / "edge").mkdir()
    (folder / "edge" / "front.onnx.data").write_bytes(FRONT)
    write_manifest(folder)
    return folder


@pytest.fixture
def config(served: Served, bundle: Path) -> ServerConfig:
    return replace(served.config, bundle=bundle)


async def listed(channel: grpc.aio.Channel, metadata: Any = None) -> str:
    """The SHA-256 of the server's list."""
    call = calls_of(channel).unary_unary(LIST_FILES_PATH)
    return decode_file_list(await call(encode_list_files_request(), metadata=metadata)).sha256


def fetching(channel: grpc.aio.Channel, request: FetchRequest, metadata: Any = None) -> Any:
    call = calls_of(channel).unary_stream(FETCH_PATH)
    return call(encode_fetch_request(request), metadata=metadata)


async def fetched(channel: grpc.aio.Channel, request: FetchRequest) -> bytes:
    """The file's bytes from the offset on; every chunk is where it says."""
    found = bytearray()
    async for data in fetching(channel, request):
        chunk = decode_file_chunk(data)
        assert chunk.offset == request.offset + len(found)
        assert len(chunk.data) <= request.max_chunk_bytes
        found += chunk.data
    return bytes(found)


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value.code(), caught.value.details() or ""


def front_of(sha256: str, **changes: Any) -> FetchRequest:
    return replace(FetchRequest(manifest_sha256=sha256, name="edge/front.onnx.data"), **changes)


def test_a_device_gets_a_file_whole_and_from_any_byte(config: ServerConfig) -> None:
    async def scenario() -> None:
        async with connected(config) as (_, channel):
            sha256 = await listed(channel)
            assert await fetched(channel, front_of(sha256)) == FRONT
            tail = front_of(sha256, offset=len(FRONT) - 5000, max_chunk_bytes=1024)
            assert await fetched(channel, tail) == FRONT[-5000:]
            assert await fetched(channel, front_of(sha256, offset=len(FRONT))) == b""

    run(scenario)


def test_nothing_but_the_devices_files_is_sent(config: ServerConfig) -> None:
    async def scenario() -> None:
        async with connected(config) as (_, channel):
            sha256 = await listed(channel)
            for name in (
                "cloud/config.json",
                "cloud/back-00001.safetensors",
                "manifest.json",
                "../source/config.json",
                "edge/../cloud/config.json",
                "/etc/passwd",
                "edge",
                str(config.bundle / "plan.yaml"),
            ):
                status, said = await status_of(fetching(channel, front_of(sha256, name=name)))
                assert (status, "offers no file" in said) == (
                    grpc.StatusCode.FAILED_PRECONDITION,
                    True,
                )
            for request, reason in (
                (front_of("ab" * 32), "another bundle"),
                (front_of(sha256, offset=len(FRONT) + 1), "has 512000 bytes"),
            ):
                status, said = await status_of(fetching(channel, request))
                assert status is grpc.StatusCode.FAILED_PRECONDITION
                assert reason in said
            call = calls_of(channel).unary_stream(FETCH_PATH)(b"\xff\xff")
            assert (await status_of(call))[0] is grpc.StatusCode.INVALID_ARGUMENT

    run(scenario)


def test_a_pull_needs_the_token_of_a_session(config: ServerConfig, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("s3cr3t\n")
    guarded = replace(config, access=Access(token_file=tmp_path / "tokens"))

    async def scenario() -> None:
        async with connected(guarded) as (_, channel):
            for metadata in (None, (("authorization", "Bearer wrong"),)):
                call = fetching(channel, front_of("ab" * 32), metadata)
                assert (await status_of(call))[0] is grpc.StatusCode.UNAUTHENTICATED
                with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                    await listed(channel, metadata)
            assert len(await listed(channel, TOKEN)) == 64

    run(scenario)


def test_a_server_that_offers_nothing_says_so(config: ServerConfig) -> None:
    async def scenario() -> None:
        async with connected(replace(config, allow_pull=False)) as (_, channel):
            with pytest.raises(grpc.aio.AioRpcError, match="--allow-pull"):
                await listed(channel)
            status, said = await status_of(fetching(channel, front_of("ab" * 32)))
            assert status is grpc.StatusCode.FAILED_PRECONDITION
            assert "--allow-pull" in said

    run(scenario)


def test_files_are_offered_where_it_is_known_who_asks(tmp_path: Path) -> None:
    def offers(**settings: Any) -> bool:
        return ServerConfig(bundle=tmp_path, **settings).offers_files

    token, ca = Access(token_file=tmp_path), Access(client_ca=tmp_path, insecure=True)
    assert offers(host="127.0.0.1")
    assert offers(host="0.0.0.0", access=token)
    assert offers(host="0.0.0.0", access=ca)
    assert not offers(host="0.0.0.0", access=Access(insecure=True))
    assert offers(host="0.0.0.0", access=Access(insecure=True), allow_pull=True)
    assert not offers(host="127.0.0.1", allow_pull=False)


def offered(bundle: Path) -> OfferedFiles:
    return OfferedFiles.of(open_bundle(bundle, role="cloud"))


def test_a_bundle_without_a_devices_files_says_what_to_do(served: Served, bundle: Path) -> None:
    with pytest.raises(PullError, match="no files for a device"):
        offered(served.config.bundle).list()
    (bundle / "edge" / "front.onnx.data").unlink()
    with pytest.raises(PullError, match=r"lacks edge/front.onnx.data: copy"):
        offered(bundle).list()


def test_a_file_that_changed_or_leaves_the_bundle_is_not_sent(bundle: Path) -> None:
    files = offered(bundle)
    front = bundle / "edge" / "front.onnx.data"
    front.write_bytes(FRONT + b"x")
    with pytest.raises(PullError, match="has changed"):
        files.open("edge/front.onnx.data")
    front.unlink()
    secret = bundle.parent / "secret"
    secret.write_bytes(FRONT)
    front.symlink_to(secret)
    with pytest.raises(PullError, match="leaves the bundle"):
        files.list()


def test_few_pulls_run_at_once_and_the_others_are_told_when(config: ServerConfig) -> None:
    async def scenario() -> None:
        async with connected(replace(config, pull_bytes_per_s=64 << 10)) as (server, channel):
            sha256 = await listed(channel)
            running = [fetching(channel, front_of(sha256)) for _ in range(MAX_PULLS_PER_PEER)]
            for call in running:
                await call.read()
            refused = fetching(channel, front_of(sha256))
            status, said = await status_of(refused)
            assert (status, said) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "too many pulls at once",
            )
            assert "retry-after-s" in dict(await refused.trailing_metadata())
            for call in running:
                call.cancel()
            async with channel_to(server.port) as other:
                for _ in range(200):
                    again = fetching(other, front_of(sha256))
                    try:
                        assert await again.read() is not None
                        break
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.05)
                else:
                    raise AssertionError("the places were not given back")
                again.cancel()

    run(scenario)
    assert MAX_PULLS_PER_PEER < MAX_PULLS


class Call:
    """A gRPC call of the server's side that takes every message."""

    def __init__(self, peer: str = "ipv4:10.0.0.1:1") -> None:
        self.num_bytes = 0
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    async def write(self, message: bytes) -> None:
        self.num_bytes += len(decode_file_chunk(message).data)


def test_a_tenants_rate_and_sessions_bound_its_pulls(bundle: Path) -> None:
    waits: list[float] = []

    async def scenario() -> None:
        pulls = Pulls([offered(bundle)], budget=ByteBudget(), clock=lambda: 0.0)
        sha256 = (await pulls.list()).sha256
        slow = Tenant(name="slow", pull_bytes_per_s=64_000.0, sessions=1)

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 1:
                with pytest.raises(CapacityError, match="slow has 1 pulls"):
                    await pulls.send(front_of(sha256), slow, Call("ipv4:10.0.0.2:1"))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "sleep", sleep)
            await pulls.send(front_of(sha256), slow, Call())
            await pulls.send(front_of(sha256), ANONYMOUS, Call())

    run(scenario)
    free = -(-len(FRONT) // MAX_CHUNK_BYTES)
    assert waits[-free:] == [0.0] * free
    slow_ones = waits[:-free]
    assert len(slow_ones) == len(FRONT) // 16_000
    assert slow_ones[-1] == pytest.approx(len(FRONT) / 64_000 - 1.0)


def test_the_token_file_takes_a_rate_of_pulls() -> None:
    tenants = Tenants.parse(b"t name=a pull_bytes_per_s=5e6", "tokens")
    assert [one.pull_bytes_per_s for one in tenants.holders] == [5e6]


def test_sessions_get_their_tokens_while_devices_pull(config: ServerConfig, served: Served) -> None:
    expected = served.front.greedy(PROMPT, 12)

    async def scenario() -> None:
        async with connected(replace(config, pull_bytes_per_s=1 << 20)) as (_, channel):
            sha256 = await listed(channel)
            pulls = [
                asyncio.create_task(fetched(channel, front_of(sha256)))
                for _ in range(MAX_PULLS_PER_PEER)
            ]
            stream = await RawStream(channel).open()
            assert await generate(served, stream, PROMPT, 12) == expected
            assert await asyncio.gather(*pulls) == [FRONT] * MAX_PULLS_PER_PEER
            await stream.call.done_writing()

    run(scenario)


def test_a_device_that_leaves_frees_its_place(bundle: Path) -> None:
    async def scenario() -> None:
        pulls = Pulls([offered(bundle)], budget=ByteBudget(), clock=lambda: 0.0)
        sha256 = (await pulls.list()).sha256
        blocked = asyncio.Event()

        class Leaving(Call):
            async def write(self, message: bytes) -> None:
                blocked.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(pulls.send(front_of(sha256), ANONYMOUS, Leaving()))
        await until(blocked.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(2 * MAX_PULLS):
            call = Call()
            await pulls.send(front_of(sha256), ANONYMOUS, call)
            assert call.num_bytes == len(FRONT)

    run(scenario)
