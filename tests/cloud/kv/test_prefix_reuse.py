"""Sessions that begin the same share their blocks, and send their beginning once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from protos.messages import Close, Closed, Open, Opened
from protos.prefix import begin_chain, extend_chain
from tests.cloud.serving import (
    RawStream,
    Served,
    connected,
    frame_of,
    open_message,
    run,
    until,
)

PROMPT = [(7 * i * i + 3 * i) % 300 for i in range(50)]


def chunks_of(served: Served, prompt: list[int]) -> list[object]:
    """Two chunks of 16 tokens that ask for nothing, and the rest, which asks for a token."""
    return [
        frame_of(served, index, prompt[:end], begin, want_token=end == len(prompt))
        for index, (begin, end) in enumerate([(0, 16), (16, 32), (32, len(prompt))])
    ]


def naming(served: Served, prompt: list[int], **changes: object) -> Open:
    request = open_message(**{"shareable_tokens": len(prompt), "max_tokens": 100, **changes})
    chain = begin_chain(request)
    names = []
    for frame in chunks_of(served, prompt)[:2]:
        chain = extend_chain(chain, frame)  # type: ignore[arg-type]
        names.append(chain)
    return replace(request, prefix_hashes=tuple(names))


async def generate(served: Served, stream: RawStream, held: int, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for frame in chunks_of(served, prompt)[held:]:
        tokens += (await stream.ask(frame)).token_ids  # type: ignore[arg-type]
    for sequence in range(3, 7):
        tokens += (await stream.ask(frame_of(served, sequence, tokens, len(tokens) - 1))).token_ids
    return tokens[len(prompt) :]


async def opened(stream: RawStream, request: Open) -> int:
    await stream.send(request)
    answer = await stream.receive()
    assert isinstance(answer, Opened)
    return answer.held_frames


def test_a_second_session_skips_what_the_first_has_sent_and_answers_the_same(
    served: Served,
) -> None:
    expected = served.front.greedy(PROMPT, 5)

    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            first = RawStream(channel)
            assert await opened(first, naming(served, PROMPT, session_id="a")) == 0
            assert await generate(served, first, 0, PROMPT) == expected
            alone = server.pool.used_blocks
            second = RawStream(channel)
            assert await opened(second, naming(served, PROMPT, session_id="b")) == 2
            # Two layers, 100 tokens in 7 blocks, of which 2 are the first one's.
            assert server.pool.used_blocks - alone == 2 * (7 - 2)
            assert await generate(served, second, 2, PROMPT) == expected
            for stream in (first, second):
                await stream.send(Close())
                assert isinstance(await stream.receive(), Closed)
            await until(lambda: server.admission.num_sessions == 0)
            assert server.pool.used_bytes == 0
            assert server.pool.cached_blocks > 0
            third = RawStream(channel)
            assert await opened(third, naming(served, PROMPT, session_id="c")) == 2
            assert await generate(served, third, 2, PROMPT) == expected

    run(scenario)


def test_a_prompt_that_differs_later_shares_what_is_the_same(served: Served) -> None:
    other = [*PROMPT[:20], *PROMPT[30:], *PROMPT[20:30]]

    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            first = RawStream(channel)
            await opened(first, naming(served, PROMPT, session_id="a"))
            await generate(served, first, 0, PROMPT)
            second = RawStream(channel)
            assert await opened(second, naming(served, other, session_id="b")) == 1
            assert await generate(served, second, 1, other) == served.front.greedy(other, 5)

    run(scenario)


def test_nobody_learns_what_another_tenant_has_sent(served: Served, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("one name=one\ntwo name=two\n")
    access = replace(served.config.access, token_file=tokens)
    one, two = ((("authorization", f"Bearer {name}"),) for name in ("one", "two"))

    async def scenario() -> None:
        async with connected(replace(served.config, access=access)) as (_, channel):
            first = RawStream(channel, one)
            await opened(first, naming(served, PROMPT, session_id="a"))
            await generate(served, first, 0, PROMPT)
            assert (
                await opened(RawStream(channel, two), naming(served, PROMPT, session_id="b")) == 0
            )
            assert (
                await opened(RawStream(channel, one), naming(served, PROMPT, session_id="c")) == 2
            )

    run(scenario)


def test_a_device_with_the_same_token_cannot_find_out_what_a_salted_one_has_sent(
    served: Served,
) -> None:
    salt = b"secret of device one"

    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            first = RawStream(channel)
            await opened(first, naming(served, PROMPT, session_id="a", prefix_salt=salt))
            await generate(served, first, 0, PROMPT)
            for index, guess in enumerate((b"", b"secret of device two")):
                probe = naming(served, PROMPT, session_id=f"g{index}", prefix_salt=guess)
                assert await opened(RawStream(channel), probe) == 0
            again = RawStream(channel)
            own = naming(served, PROMPT, session_id="b", prefix_salt=salt)
            assert await opened(again, own) == 2
            assert await generate(served, again, 2, PROMPT) == served.front.greedy(PROMPT, 5)

    run(scenario)


def test_a_tenant_can_forbid_names_without_a_secret(served: Served, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("one name=one share_prefixes=no\n")
    config = replace(served.config, access=replace(served.config.access, token_file=tokens))
    metadata = (("authorization", "Bearer one"),)

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            for salt, held in ((b"", 0), (b"s" * 16, 2)):
                for name, expected in (("a", 0), ("b", held)):
                    stream = RawStream(channel, metadata)
                    request = naming(
                        served, PROMPT, session_id=f"{name}{len(salt)}", prefix_salt=salt
                    )
                    assert await opened(stream, request) == expected
                    await generate(served, stream, expected, PROMPT)
                    await stream.send(Close())
                    await stream.receive()
                assert (server.pool.cached_blocks > 0) is bool(salt)

    run(scenario)


def test_kept_beginnings_give_way_to_sessions(served: Served) -> None:
    # Two layers: room for two sessions of 100 tokens (7 blocks a layer), no more.
    config = replace(served.config, kv_memory_bytes=2 * 2 * 7 * (2 * 2 * 16 * 4 * 16))

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            first = RawStream(channel)
            await opened(first, naming(served, PROMPT, session_id="a"))
            await generate(served, first, 0, PROMPT)
            await first.send(Close())
            await first.receive()
            assert server.pool.cached_blocks > 0
            for name in ("b", "c"):
                await RawStream(channel).open(session_id=name, max_tokens=100)
            assert server.pool.cached_blocks == 0

    run(scenario)


def test_a_shared_beginning_cannot_be_overwritten(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            first = RawStream(channel)
            await opened(first, naming(served, PROMPT, session_id="a"))
            await generate(served, first, 0, PROMPT)
            second = RawStream(channel)
            assert await opened(second, naming(served, PROMPT, session_id="b")) == 2
            await second.send(frame_of(served, 2, PROMPT[:20], 10))
            _, reason = await second.refused()
            assert "shared" in reason
            await asyncio.sleep(0)

    run(scenario)
