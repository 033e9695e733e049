"""What a server says is checked like what a client says, and a bad server ends in a clear error.

A real client with a real front talks over TCP to a gRPC server that lies, floods or breaks off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.errors import BusyError, LostError, PeerError, RefusedError, TransportError
from edge.generation.completion import CompletionRequest
from edge.generation.report import Completion
from edge.net.grpc_probe import GrpcProbeStream
from edge.net.grpc_transport import GrpcTransport
from edge.net.link_probe import probe_link
from optimizer.policy.retry import RetryPolicy
from protos import split_inference_pb2 as pb
from protos import wire
from protos.messages import Frame, Open
from tests.conftest import ModelBench
from tests.hostile.lying_server import (
    TOKEN,
    LyingServer,
    Script,
    honest,
    lying,
    lying_server,
    message,
    opened,
    true_result,
)

PROMPT_IDS = list(range(3, 15))
REQUEST = CompletionRequest(
    max_new_tokens=8, ignore_eos=True, draft="off", sampling=SamplingParams(logprobs=True)
)
SHORT = RetryPolicy(connect_s=2.0, step_s=5.0, recover_s=1.0)
# With the default backoff, so many sessions fit into a second of trying, and a few more.
MANY_SESSIONS = 12


@pytest.fixture(scope="module")
def bundle(bench: ModelBench) -> Path:
    return bench.edge_bundle(2)


def ask(
    bundle: Path, server: LyingServer, policy: RetryPolicy = SHORT, chunk: int = 2
) -> Completion:
    """One completion in chunks of two prompt tokens."""
    with EdgeClient(bundle, server.address, prefill_chunk=chunk, retry_policy=policy) as client:
        run = client.start_ids(PROMPT_IDS, REQUEST)
        for _ in run:
            pass
        return run.completion


def test_the_honest_script_is_a_server_that_a_device_takes(bundle: Path) -> None:
    with lying_server(honest) as server:
        completion = ask(bundle, server)
    assert completion.token_ids == (TOKEN,) * 8
    assert completion.logprobs == (-0.5,) * 8
    assert server.num_sessions == 1


def fails_at(step: Callable[[Frame], bool]) -> Script:
    """Breaks off with INTERNAL at the first frame for which `step` is true."""

    def script(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
        yield opened(request)
        for frame in frames:
            if step(frame):
                context.abort(grpc.StatusCode.INTERNAL, "the step failed")
            yield message(true_result(frame))

    return script


@pytest.mark.parametrize(
    ("script", "num_tokens"),
    [
        (fails_at(lambda frame: frame.want_token), 0),
        (fails_at(lambda frame: frame.first_position > PROMPT_IDS[-1] - 3), 1),
        (fails_at(lambda frame: frame.sequence == 0), 0),
        (fails_at(lambda frame: frame.sequence == 3), 0),
    ],
    ids=["the token step", "after the first token", "the first chunk", "a later chunk"],
)
def test_a_server_whose_step_fails_is_given_up_in_time_and_after_few_sessions(
    bundle: Path, script: Script, num_tokens: int
) -> None:
    with lying_server(script) as server:
        begun_s = time.monotonic()
        if num_tokens:
            completion = ask(bundle, server)
            assert completion.finish_reason == "server_lost"
            assert len(completion.token_ids) == num_tokens
            assert "no way back within 1 s" in completion.finish_detail
        else:
            with pytest.raises(LostError, match="no way back within 1 s"):
                ask(bundle, server)
        took_s = time.monotonic() - begun_s
    assert 2 <= server.num_sessions <= MANY_SESSIONS
    assert took_s < 20.0  # mostly loading; it tries for one second


def test_a_server_that_says_no_more_after_a_loss_has_the_time_that_is_left(bundle: Path) -> None:
    scripts = iter([fails_at(lambda frame: frame.want_token)])

    def script(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
        return next(scripts, mute)(request, frames, context)

    def mute(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
        yield opened(request)
        for _ in frames:
            pass

    slow_step = RetryPolicy(connect_s=2.0, step_s=60.0, recover_s=1.0)
    with lying_server(script) as server:
        begun_s = time.monotonic()
        with pytest.raises(LostError, match="no way back within 1 s"):
            ask(bundle, server, slow_step)
        assert time.monotonic() - begun_s < 30.0


def test_every_new_token_restarts_the_time_to_recover(bundle: Path) -> None:
    """A server that brings one token a session is slow, but it makes progress."""

    def script(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
        yield opened(request)
        for frame in frames:
            yield message(true_result(frame))
            if frame.want_token:
                context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    with lying_server(script) as server:
        completion = ask(bundle, server)
    assert completion.token_ids == (TOKEN,) * 8
    assert server.num_sessions == 8


def flood(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
    yield opened(request)
    answer = message(true_result(next(frames)))
    while context.is_active():
        yield answer


def ahead_of_time(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
    yield opened(request)
    yield message(pb.Result(sequence=40, num_tokens=1))


def out_of_order(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
    yield opened(request)
    first, second = next(frames), next(frames)
    yield message(true_result(second))
    yield message(true_result(first))


def opens_twice(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
    yield opened(request)
    yield opened(request)
    yield from (message(true_result(frame)) for frame in frames)


def speaks_garbage(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
    yield opened(request)
    yield b"\xff\xff\xff"


def sends_a_huge_answer(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
    yield opened(request)
    yield bytes(wire.MAX_ANSWER_BYTES + 1)


def one_token_more(result: pb.Result) -> None:
    result.token_ids.append(9)
    result.logprobs.append(-1.0)


def no_token(result: pb.Result) -> None:
    result.ClearField("token_ids")
    result.ClearField("logprobs")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (flood, "does not belong to an open question"),
        (ahead_of_time, "answer 40 does not belong"),
        (out_of_order, "answer 1 does not belong"),
        (opens_twice, "opened the session twice"),
        (speaks_garbage, "malformed message"),
        (sends_a_huge_answer, "larger than"),
        (
            lying(lambda r: r.token_ids.append(9), about_tokens=False),
            "that nobody asked for",
        ),
        (lying(lambda r: r.ClearField("logprobs")), "0 log-probabilities for 1 tokens"),
        (lying(lambda r: r.logprobs.append(-1.0)), "as many logprobs as tokens"),
        (lying(one_token_more), "has 2 tokens for 0 drafts"),
        (lying(no_token), "has 0 tokens"),
        (lying(lambda r: setattr(r, "num_tokens", 1)), "cache holds 1 tokens"),
        (lying(lambda r: setattr(r, "num_tokens", 1 << 30)), "num_tokens"),
        (lying(lambda r: setattr(r, "num_tokens", 0), about_tokens=False), "cache holds 0 tokens"),
    ],
)
def test_an_answer_that_makes_no_sense_ends_the_session_by_a_peer_error(
    bundle: Path, script: Script, reason: str
) -> None:
    with lying_server(script) as server:
        with pytest.raises(PeerError, match=reason):
            ask(bundle, server)
        assert server.num_sessions == 1


@pytest.mark.parametrize("beyond", [0, 1 << 31])
def test_a_token_beyond_the_vocabulary_is_the_servers_error_not_the_users(
    bundle: Path, bench: ModelBench, beyond: int
) -> None:
    vocab_size = bench.source.geometry.vocab_size
    token = vocab_size + beyond
    with (
        lying_server(lying(lambda result: result.token_ids.__setitem__(0, token))) as server,
        pytest.raises(PeerError, match=f"answered token {token}, the vocabulary has {vocab_size}"),
    ):
        ask(bundle, server)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.5])
def test_a_log_probability_is_finite_and_not_above_zero(bundle: Path, value: float) -> None:
    with (
        lying_server(lying(lambda result: result.logprobs.__setitem__(0, value))) as server,
        pytest.raises(PeerError, match="log-probabilities must be finite and not above 0"),
    ):
        ask(bundle, server)


@pytest.mark.parametrize("field", ["codec_s", "queue_s", "compute_s", "sample_s"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e30])
def test_timings_are_times(bundle: Path, field: str, value: float) -> None:
    lie = lying(lambda result: setattr(result.timings, field, value))
    with lying_server(lie) as server, pytest.raises(PeerError, match="timings must be finite"):
        ask(bundle, server)


def opening(**fields: Any) -> Script:
    """Opens with these fields in place of the honest ones."""

    def script(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
        honest_fields = {"session_id": request.session_id, "max_frame_tokens": 64}
        yield pb.CloudMessage(opened=pb.Opened(**{**honest_fields, **fields})).SerializeToString()
        yield from (message(true_result(frame)) for frame in frames)

    return script


def answers_before_it_opens(request: Open, frames: Iterator[Frame], _: Any) -> Iterator[bytes]:
    yield message(pb.Result(sequence=0, num_tokens=1))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (opening(max_frame_tokens=0), "max_frame_tokens is 0"),
        (opening(max_frame_tokens=1 << 31), "max_frame_tokens"),
        (opening(max_frames_in_flight=0), "max_frames_in_flight is 0"),
        (opening(max_frames_in_flight=1 << 31), "max_frames_in_flight"),
        (opening(held_frames=30), r"holds 30 frames of \d"),
        (opening(held_frames=(1 << 32) - 1), "held_frames"),
        (opening(session_id="another"), "opened another session"),
        (opening(session_id="\x1b[2J"), "session_id must be"),
        (answers_before_it_opens, "an answer before it opened"),
    ],
)
def test_a_session_opened_on_terms_that_cannot_be_is_refused_at_once(
    bundle: Path, script: Script, reason: str
) -> None:
    with lying_server(script) as server:
        with pytest.raises(PeerError, match=reason):
            ask(bundle, server)
        assert server.num_sessions == 1


def refusing(status: grpc.StatusCode, detail: str, retry_after: str | None = None) -> Script:
    def script(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
        if retry_after is not None:
            context.set_trailing_metadata((("retry-after-s", retry_after),))
        context.abort(status, detail)
        yield b""

    return script


@pytest.mark.parametrize("said", ["nan", "inf", "-inf", "-3", "0", "1e-30", "1e300", "soon", ""])
def test_whatever_a_busy_server_says_it_is_asked_a_few_times_and_not_for_long(
    bundle: Path, said: str
) -> None:
    busy = refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", said)
    policy = RetryPolicy(connect_s=0.6, recover_s=0.6)
    with lying_server(busy) as server:
        with pytest.raises(BusyError, match="full"):
            ask(bundle, server, policy)
        assert 1 <= server.num_sessions <= 7


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, RefusedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, BusyError),
    ],
)
def test_a_servers_words_are_one_line_that_a_terminal_can_show(
    bundle: Path, status: grpc.StatusCode, kind: type[TransportError]
) -> None:
    loud = refusing(status, "no\n\x1b[31mway\x07 " + "x" * 5000, "60")
    with lying_server(loud) as server, pytest.raises(kind) as caught:
        ask(bundle, server)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "reply",
    [
        b"\xff\xff",
        pb.Description(protocol_version=99).SerializeToString(),
        pb.Description(protocol_version=1, model_sha256="not hex").SerializeToString(),
        pb.Description(
            protocol_version=1, model_sha256="a" * 64, hidden_size=1, first_layer=9, num_layers=3
        ).SerializeToString(),
    ],
)
def test_a_description_that_makes_no_sense_is_a_peer_error(reply: bytes) -> None:
    with lying_server(honest, describe=lambda request, context: reply) as server:
        transport = GrpcTransport(server.address)
        with pytest.raises(PeerError, match="malformed"):
            transport.describe(timeout_s=10.0)
        transport.close()


def probe_garbage(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    yield b"\xff\xff\xff"


def probe_flood(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    answer = pb.ProbeChunk(sequence=1).SerializeToString()
    while context.is_active():
        yield answer


def probe_other_size(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    for data in requests:
        chunk = wire.decode_probe(data)
        yield pb.ProbeChunk(sequence=chunk.sequence, padding=b"x").SerializeToString()


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (probe_garbage, "malformed"),
        (probe_flood, "answered probe 1"),
        (probe_other_size, "with 1 bytes"),
    ],
)
def test_a_probe_that_is_answered_wrongly_measures_nothing(
    probe: Callable[[Iterator[bytes], Any], Iterator[bytes]], reason: str
) -> None:
    with lying_server(honest, probe=probe) as server:
        transport = GrpcTransport(server.address)
        with GrpcProbeStream(transport) as stream, pytest.raises(PeerError, match=reason):
            probe_link(stream)
        transport.close()
