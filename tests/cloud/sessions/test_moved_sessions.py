"""A session that goes on from an older one with keys and values: what is kept, and what is refused.

The edge is a raw client here, so it can send what no honest edge sends. Each refusal is one line,
and frees every block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from cloud.kv.moved import copy_kv, fits_arena, write_kv
from cloud.kv.pool import KvPool, KvShape
from cloud.server.process import Server
from codec.kv.frame import KeysValues, KvFrames
from codec.ladder import Ladder
from protos.messages import Close, Closed, Frame, Open, Opened, Result
from tests.cloud.serving import PROMPT, WIDTH, RawStream, Served, connected, open_message, run
from tests.cloud.tiny_bundle import WholeModelFront

OLD, NEW = 3, 1
KEPT = len(PROMPT)
LADDER = Ladder.lossless(WIDTH)
FRAMES = KvFrames(hidden_size=WIDTH, layers=range(NEW, OLD), num_heads=2, head_dim=16)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("moved"))


class Edge:
    """The parts of an edge that a test needs, computed by transformers."""

    def __init__(self, served: Served) -> None:
        self.model = served.model

    def rows(self, split: int, sequence: int, first: int, tokens: list[int], **more: Any) -> Frame:
        """A frame of the rows behind `first` tokens."""
        front = WholeModelFront(self.model, split)
        hidden = np.asarray(front.rows([*PROMPT, *tokens], first), dtype=np.float32)
        ids = [*PROMPT, *tokens][first:]
        payload = LADDER.encode("lossless", hidden, np.asarray(ids, dtype=np.int64))
        return Frame(
            sequence=sequence,
            first_position=first,
            token_ids=tuple(ids),
            hidden=payload,
            **more,
        )

    def kv(self, begin: int = 0, end: int = KEPT) -> KeysValues:
        """Of the prompt's tokens, [T, layers, 2, G, d]."""
        with torch.inference_mode():
            past = self.model(torch.tensor([PROMPT]), use_cache=True).past_key_values
        pairs = [
            torch.stack([past.layers[i].keys[0], past.layers[i].values[0]]) for i in range(NEW, OLD)
        ]
        return torch.stack(pairs).permute(3, 0, 1, 2, 4).numpy()[begin:end].copy()

    def frame(self, begin: int = 0, end: int = KEPT, **changes: Any) -> Frame:
        """A frame of keys and values."""
        frame = Frame(
            sequence=begin and 1,
            first_position=begin,
            token_ids=tuple(PROMPT[begin:end]),
            hidden=b"",
            want_token=False,
            kv=FRAMES.encode("lossless", self.kv(begin, end)),
        )
        return replace(frame, **changes)


async def began(channel: grpc.aio.Channel, edge: Edge) -> tuple[RawStream, int]:
    """The older session, with the prompt in its cache; and its first token."""
    stream = await RawStream(channel).open(session_id="old", split=OLD, resume_s=60.0)
    answer = await stream.ask(edge.rows(OLD, 0, 0, []))
    return stream, answer.token_ids[0]


def moving(**changes: Any) -> Open:
    return open_message(
        **{
            "session_id": "new",
            "split": NEW,
            "token_rows": 60,
            "continues": "old",
            "kv_tokens": KEPT,
            "resume_s": 60.0,
            **changes,
        }
    )


async def asked(stream: RawStream, request: Open) -> Opened:
    await stream.send(request)
    opened = await stream.receive()
    assert isinstance(opened, Opened)
    return opened


async def comes_free(server: Server) -> None:
    server.admission.drain()  # which closes what is resumable
    for _ in range(400):
        if not server.pool.num_leases and not server.admission.num_sessions:
            break
        await asyncio.sleep(0.01)
    assert server.pool.used_bytes == 0


def whole_answer(edge: Edge, count: int) -> list[int]:
    tokens = list(PROMPT)
    for _ in range(count):
        with torch.inference_mode():
            tokens.append(int(edge.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("parked", [False, True], ids=["on its stream", "resumable"])
@pytest.mark.parametrize("cuts", [(KEPT,), (3, KEPT)], ids=["one frame", "two frames"])
def test_the_new_session_goes_on_where_the_older_one_was(
    served: Served, parked: bool, cuts: tuple[int, ...]
) -> None:
    edge = Edge(served)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            old, token = await began(channel, edge)
            if parked:
                old.call.cancel()
                while not server.admission.num_resumable:
                    await asyncio.sleep(0.01)
            stream = RawStream(channel)
            opened = await asked(stream, moving())
            assert opened.continued
            assert opened.held_frames == 0
            assert opened.token_rows == KEPT
            begin = 0
            for number, end in enumerate(cuts):
                answer = await stream.ask(edge.frame(begin, end, sequence=number))
                assert (answer.token_ids, answer.num_tokens) == ((), end)
                begin = end
            assert server.pool.num_leases == 1  # the older one is free
            tokens = [token]
            for number in range(len(cuts), len(cuts) + 5):
                at = KEPT + len(tokens) - 1
                answer = await stream.ask(edge.rows(NEW, number, at, tokens))
                tokens += answer.token_ids
            assert tokens == whole_answer(edge, 6)
            if not parked:
                assert (await old.refused())[1] == "another stream opened this session again"
            await stream.send(Close())
            assert isinstance(await stream.receive(), Closed)
            await comes_free(server)

    run(scenario)


def spoilt(edge: Edge, change: str) -> Frame:
    """A frame that no session may take."""
    kv = edge.kv()
    other = KvFrames(hidden_size=WIDTH, layers=range(NEW, OLD + 1), num_heads=2, head_dim=16)
    more = np.concatenate([kv, kv[:, :1]], axis=1)
    encoded = FRAMES.encode("lossless", kv)
    changes: dict[str, Callable[[], dict[str, Any]]] = {
        "damaged": lambda: {"kv": encoded[:-1] + bytes((encoded[-1] ^ 1,))},
        "short": lambda: {"kv": encoded[:-9]},
        "other layers": lambda: {"kv": other.encode("lossless", more)},
        "fewer tokens": lambda: {"token_ids": tuple(PROMPT[:-1])},
        "other tokens": lambda: {"token_ids": (*PROMPT[:-1], 1)},
        "beyond": lambda: {"token_ids": (*PROMPT, 1)},
        "a gap": lambda: {"first_position": 1, "token_ids": tuple(PROMPT[1:])},
        "no kv": lambda: {"kv": b""},
        "unknown token": lambda: {"token_ids": (*PROMPT[:-1], 100_000)},
    }
    return edge.frame(**changes[change]())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("damaged", "frame 0: check failed"),
        ("short", "frame 0: check failed"),
        ("other layers", "frame 0: kv frame of|frame 0: check failed"),
        ("fewer tokens", "holds 8 tokens, expected 7"),
        ("other tokens", "names other tokens than the session that it goes on from"),
        ("beyond", "came before the keys and values from 0 to 8"),
        ("a gap", "starts at position 1, the cache ends at 0"),
        ("no kv", "came before the keys and values from 0 to 8"),
        ("unknown token", "beyond the vocabulary"),
    ],
)
def test_bad_keys_and_values_end_the_session_and_free_its_blocks(
    served: Served, change: str, why: str
) -> None:
    edge = Edge(served)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            await began(channel, edge)
            stream = RawStream(channel)
            assert (await asked(stream, moving())).continued
            await stream.send(spoilt(edge, change))
            status, reason = await stream.refused()
            assert status is grpc.StatusCode.INVALID_ARGUMENT
            assert any(part in reason for part in why.split("|")), reason
            await comes_free(server)

    run(scenario)


@pytest.mark.parametrize(
    "changes",
    [
        {"continues": "unknown"},
        {"kv_tokens": KEPT + 1},
        {"kv_tokens": 0},
        {"split": OLD},
        {"max_tokens": KEPT},
    ],
    ids=["unknown session", "more than it has", "none", "same split", "no room for a token"],
)
def test_what_cannot_go_on_begins_anew_and_takes_ids(
    served: Served, changes: dict[str, Any]
) -> None:
    """The older session ends, whatever comes of the new one."""
    edge = Edge(served)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            old, token = await began(channel, edge)
            stream = RawStream(channel)
            opened = await asked(stream, moving(**changes))
            assert not opened.continued
            assert opened.token_rows >= KEPT
            ids = Frame(
                sequence=0, first_position=0, token_ids=tuple(PROMPT), hidden=b"", want_token=True
            )
            if "split" not in changes:
                assert (await stream.ask(ids)).token_ids == (token,)
            if changes.get("continues") != "unknown":
                assert (await old.refused())[0] is grpc.StatusCode.ABORTED
            else:
                old.call.cancel()
            stream.call.cancel()
            await comes_free(server)

    run(scenario)


def test_another_tenants_session_is_unknown_and_frames_without_a_move_are_refused(
    served: Served,
) -> None:
    edge = Edge(served)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = await RawStream(channel).open(session_id="alone", split=NEW, token_rows=60)
            await stream.send(edge.frame())
            assert "keys and values nobody asked for" in (await stream.refused())[1]
            await comes_free(server)

    run(scenario)


def test_a_stream_that_breaks_amid_keys_and_values_leaves_nothing_to_go_on_from(
    served: Served,
) -> None:
    edge = Edge(served)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            _, token = await began(channel, edge)
            stream = RawStream(channel)
            assert (await asked(stream, moving())).continued
            await stream.ask(edge.frame(0, 3))
            assert server.pool.num_leases == 2
            stream.call.cancel()
            again = RawStream(channel)
            opened = await asked(again, moving(continues="old", kv_tokens=0))
            assert not opened.continued
            assert opened.held_frames == 0
            ids = Frame(
                sequence=0, first_position=0, token_ids=tuple(PROMPT), hidden=b"", want_token=True
            )
            answer = await again.ask(ids)
            assert isinstance(answer, Result)
            assert answer.token_ids == (token,)
            again.call.cancel()
            await comes_free(server)

    run(scenario)


def test_a_whole_move_is_resumed_and_its_frames_are_answered_again_by_their_ids(
    served: Served,
) -> None:
    """The edge's journal holds ids alone, and the answers may have been lost with the stream."""
    edge = Edge(served)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            _, token = await began(channel, edge)
            stream = RawStream(channel)
            assert (await asked(stream, moving())).continued
            await stream.ask(edge.frame(0, 3))
            await stream.ask(edge.frame(3, KEPT))
            stream.call.cancel()
            again = RawStream(channel)
            opened = await asked(again, moving(continues="", kv_tokens=0))
            assert (opened.held_frames, opened.continued) == (2, False)
            repeated = await again.ask(edge.frame(3, KEPT, kv=b""))
            assert (repeated.token_ids, repeated.num_tokens) == ((), KEPT)
            answer = await again.ask(edge.rows(NEW, 2, KEPT, [token]))
            assert list(answer.token_ids) == whole_answer(edge, 2)[1:]
            again.call.cancel()
            await comes_free(server)

    run(scenario)


def test_a_server_that_holds_a_ranks_heads_alone_takes_ids(served: Served) -> None:
    edge = Edge(served)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            await began(channel, edge)
            server.pool.is_rank = True
            stream = RawStream(channel)
            assert not (await asked(stream, moving())).continued
            stream.call.cancel()
            await comes_free(server)

    run(scenario)


def test_without_room_for_both_the_session_begins_anew(served: Served) -> None:
    edge = Edge(served)
    # The older session's layer takes 4 blocks of 16 tokens, the new one's three layers 12.
    small = replace(served.config, kv_memory_bytes=14 * 2 * 2 * 16 * 4 * 16)

    async def scenario() -> None:
        async with connected(small) as (server, channel):
            await began(channel, edge)
            stream = RawStream(channel)
            assert not (await asked(stream, moving())).continued
            stream.call.cancel()
            await comes_free(server)

    run(scenario)


def test_keys_and_values_go_to_scattered_blocks_and_back() -> None:
    """Layers 1 to 3 of one lease, from layers 2 to 3 of an older one and rows of layer 1."""
    shape = KvShape(num_layers=4, num_kv_heads=2, head_dim=4)
    pool = KvPool(shape, limit_bytes=64 * shape.block_bytes)
    fillers = [pool.lease(split=3, max_tokens=16) for _ in range(20)]
    for filler in fillers[::2]:
        filler.close()
    older = pool.lease(split=2, max_tokens=60, shareable_tokens=32)
    newer = pool.lease(split=1, max_tokens=70)
    rng = np.random.default_rng(1)
    kv = rng.normal(0, 1, (50, 3, 2, 2, 4)).astype(np.float32)
    write_kv(older, first_layer=2, begin=0, kv=kv[:, 1:])
    for begin, end in ((0, 20), (20, 50)):
        write_kv(newer, first_layer=1, begin=begin, kv=kv[begin:end, :1])
        copy_kv(older, newer, begin=begin, end=end)
    for layer in range(1, 4):
        rows = [
            pool.arena[row + (layer - 1) * stride : row + (layer - 1) * stride + count]
            for row, stride, count in newer.spans(0, 50)
        ]
        assert (torch.cat(rows).numpy().reshape(50, 2, 2, 4) == kv[:, layer - 1]).all()


def test_numbers_beyond_a_narrow_type_do_not_fit(tmp_path: Path) -> None:
    shape = KvShape(num_layers=2, num_kv_heads=1, head_dim=4, dtype=torch.float16)
    pool = KvPool(shape, limit_bytes=8 * shape.block_bytes)
    lease = pool.lease(split=0, max_tokens=16)
    kv = np.ones((3, 1, 2, 1, 4), dtype=np.float32)
    assert fits_arena(lease, kv)
    assert not fits_arena(lease, kv * 1e6)
