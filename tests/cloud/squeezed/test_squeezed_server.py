"""A server that squeezes: every session with the same prompt gets the same answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloud.errors import StartError
from cloud.server.process import Server
from cloud.squeezed.fixed_context import Squeezing
from protos.messages import Close, Open, Opened
from protos.prefix import begin_chain, extend_chain
from tests.cloud.conftest import served as served  # the fixture
from tests.cloud.serving import RawStream, Served, connected, frame_of, open_message, run

PROMPT = [(7 * i * i + 3 * i) % 300 for i in range(100)]
CUTS = ((0, 32), (32, 64), (64, len(PROMPT)))


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """One segment of 48 tokens of the prompt is fixed."""
    for module in ("fixed_context", "index"):
        monkeypatch.setattr(f"cloud.squeezed.{module}.SEGMENT_TOKENS", 48)
    monkeypatch.setattr("cloud.squeezed.fixed_context.NUM_QUERIES", 8)
    monkeypatch.setattr("cloud.squeezed.fixed_context._FIRST_RECORDED", 40)


def naming(served: Served, **changes: object) -> Open:
    request = open_message(
        **{"shareable_tokens": len(PROMPT), "max_tokens": 120, "split": 2, **changes}
    )
    chain = begin_chain(request)
    names = []
    for sequence, (begin, end) in enumerate(CUTS[:2]):
        frame = frame_of(served, sequence, PROMPT[:end], begin, want_token=False)
        chain = extend_chain(chain, frame)
        names.append(chain)
    return replace(request, prefix_hashes=tuple(names))


async def generate(served: Served, stream: RawStream, held: int, count: int = 6) -> list[int]:
    tokens = list(PROMPT)
    for sequence, (begin, end) in list(enumerate(CUTS))[held:]:
        is_last = end == len(PROMPT)
        frame = frame_of(served, sequence, PROMPT[:end], begin, want_token=is_last)
        tokens += (await stream.ask(frame)).token_ids
    for sequence in range(len(CUTS), len(CUTS) + count - 1):
        tokens += (await stream.ask(frame_of(served, sequence, tokens, len(tokens) - 1))).token_ids
    return tokens[len(PROMPT) :]


async def opened(stream: RawStream, request: Open) -> int:
    await stream.send(request)
    answer = await stream.receive()
    assert isinstance(answer, Opened)
    return answer.held_frames


def squeezing_of(server: Server) -> Squeezing:
    (model,) = server.admission.models
    assert model.squeezing is not None
    return model.squeezing


def test_who_ran_the_prompt_and_when_does_not_matter(served: Served) -> None:
    """The first session, one that finds its beginning, and one that comes again elsewhere with all
    its tokens in one frame."""
    config = replace(served.config, squeeze_prefixes=0.2)

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            first = RawStream(channel)
            assert await opened(first, naming(served, session_id="a")) == 0
            expected = await generate(served, first, 0)
            second = RawStream(channel)
            assert await opened(second, naming(served, session_id="b")) == 2
            assert await generate(served, second, 2) == expected
            squeezing = squeezing_of(server)
            assert squeezing.num_seen == 2 * 5 * 48 * 2 * 2  # rows, fixed tokens, layers, heads
            assert squeezing.read_share < 0.6
            assert squeezing.num_bytes > 0
        async with connected(config) as (server, channel):
            again = RawStream(channel)
            await opened(again, naming(served, session_id="c"))
            tokens = [*PROMPT, *expected[:3]]
            result = await again.ask(frame_of(served, 0, tokens, 0))
            assert list(result.token_ids) == expected[3:4]
            assert squeezing_of(server).num_seen > 0

    run(scenario)


def test_without_the_option_nothing_is_indexed(served: Served) -> None:
    async def scenario() -> None:
        async with connected(served.config) as (server, channel):
            stream = RawStream(channel)
            await opened(stream, naming(served, session_id="a"))
            assert await generate(served, stream, 0) == served.front.greedy(PROMPT, 6)
            (model,) = server.admission.models
            assert model.squeezing is None
            await stream.send(Close())

    run(scenario)


def test_all_keys_give_the_models_own_tokens(served: Served) -> None:
    config = replace(served.config, squeeze_prefixes=1.0)

    async def scenario() -> None:
        async with connected(config) as (server, channel):
            stream = RawStream(channel)
            await opened(stream, naming(served, session_id="a"))
            assert await generate(served, stream, 0) == served.front.greedy(PROMPT, 6)
            assert squeezing_of(server).read_share == 1

    run(scenario)


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_that_there_is_not_is_refused(served: Served, share: float) -> None:
    async def scenario() -> None:
        with pytest.raises(StartError, match="--squeeze-prefixes"):
            async with connected(replace(served.config, squeeze_prefixes=share)):
                pass

    run(scenario)
