"""A completion from a scripted source of tokens: text, times, and every way to end."""

from __future__ import annotations

import io
import json
import queue
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from edge.device.detokenizer import DecodedToken
from edge.errors import EdgeError, InputError, LostError, TooSlowError
from edge.generation.completion import CompletionRequest, CompletionRun
from edge.generation.stopping import StopRule
from edge.generation.token_source import NewToken, OnStep
from hwprofiles.sensors.energy import EnergyMeter, EnergySensor, GaugeTally
from tests.edge.generation.steps import step_trace

EOS = 0


class Script:
    """A TokenSource that brings one token a second, then raises or ends."""

    reconnects = 3

    def __init__(self, *tokens: int, error: EdgeError | None = None) -> None:
        self.script = tokens
        self.error = error
        self.closed = False
        self.cancelled = False

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        try:
            for index, token_id in enumerate(self.script):
                on_step(step_trace(sequence=index))
                yield NewToken(token_id, -0.5 * token_id, at_s=10.0 + index)
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True

    def cancel(self) -> None:
        self.cancelled = True


class Front:
    """Nothing here runs it."""


class Letters:
    """Token 1 is 'a', 2 is 'b', and so on."""

    def push(self, token_id: int) -> DecodedToken:
        letter = chr(ord("a") + token_id - 1)
        return DecodedToken(letter, letter, letter.encode())

    def flush(self) -> str:
        return ""


class Ticks:
    """A clock that reads 9, 19, 29, ..."""

    def __init__(self) -> None:
        self.now_s = -1.0

    def now(self) -> float:
        self.now_s += 10.0
        return self.now_s


def run_of(
    source: Script,
    *,
    stop: tuple[str, ...] = (),
    max_new_tokens: int = 10,
    trace: Any = None,
    meter: EnergyMeter | None = None,
) -> tuple[CompletionRun, Any]:
    fronts: Any = queue.SimpleQueue()
    fronts.put(Front())
    clock: Any = Ticks()
    text: Any = Letters()
    run = CompletionRun(
        fronts=fronts,
        generation_of=lambda front: source,
        prompt_ids=(7, 8),
        hidden_size=4,
        text=text,
        stop=StopRule(stop_token_ids=(EOS,), stop_strings=stop, max_new_tokens=max_new_tokens),
        with_logprobs=True,
        clock=clock,
        trace=trace,
        meter=meter,
    )
    return run, fronts


def test_the_pieces_are_the_text_and_the_completion_is_their_sum() -> None:
    run, _ = run_of(Script(1, 2, 3, EOS))
    assert [piece.text for piece in run] == ["a", "b", "c", ""]
    done = run.completion
    assert (done.text, done.token_ids, done.finish_reason) == ("abc", (1, 2, 3, EOS), "stop")
    assert done.logprobs == (-0.5, -1.0, -1.5, 0.0)
    assert (done.num_prompt_tokens, done.reconnects, len(done.steps)) == (2, 3, 4)


def test_times_count_from_the_call() -> None:
    run, _ = run_of(Script(1, 2, EOS))
    list(run)
    assert run.completion.token_times_s == (1.0, 2.0, 3.0)
    assert run.completion.total_s == 10.0


def four_watts() -> EnergyMeter:
    """A meter from second 10 to second 12."""
    sensor = EnergySensor(
        name="fake", covers="board", every_s=1000.0, tally=lambda: GaugeTally(lambda: 4.0)
    )
    times = iter((10.0, 12.0))
    return EnergyMeter(sensor, now=lambda: next(times))


@pytest.mark.parametrize("fails", [False, True])
def test_an_answer_is_metered_from_its_begin_to_its_end(fails: bool) -> None:
    meter = four_watts()
    script = Script(error=LostError("lost")) if fails else Script(1, 2, EOS)
    run, _ = run_of(script, meter=meter)
    if fails:
        with pytest.raises(LostError, match="lost"):
            list(run)
    else:
        list(run)
    energy = run.completion.energy
    assert energy is not None
    assert (energy.joules, energy.seconds) == (8.0, 2.0)
    assert meter.stop() is None  # it has ended either way
    assert run_of(Script(1, EOS))[0]._meter is None


def test_the_length_asked_for_ends_it_and_closes_the_source() -> None:
    source = Script(1, 2, 3, 4)
    run, _ = run_of(source, max_new_tokens=2)
    assert len(list(run)) == 2
    assert run.completion.finish_reason == "length"
    assert source.closed


def test_a_stop_string_is_no_part_of_the_text() -> None:
    run, _ = run_of(Script(1, 2, 3, 4), stop=("bc",))
    list(run)
    assert (run.completion.text, run.completion.finish_reason) == ("a", "stop")


class Euros(Letters):
    """Token 1 is the first byte of a euro sign, 2 the second, 3 the last."""

    def __init__(self) -> None:
        self.held = b""

    def push(self, token_id: int) -> DecodedToken:
        data = "€".encode()[token_id - 1 : token_id] if token_id else b""
        self.held += data
        if self.held != "€".encode():
            return DecodedToken("", "", data)
        self.held = b""
        return DecodedToken("€", "€", data)

    def flush(self) -> str:
        rest, self.held = self.held, b""
        return rest.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("tokens", "text", "reason"),
    [
        ((1, 2, 3, EOS), "€", "stop"),
        ((1, 2, 3, 1, 2, EOS), "€\ufffd", "stop"),
        ((1, 2, 3, 1, 2, 3, 1), "€€\ufffd", "length"),
        ((1, 2, 3, 1), "€\ufffd", "server_lost"),
    ],
)
def test_a_character_that_never_ends_is_replaced_once(
    tokens: tuple[int, ...], text: str, reason: str
) -> None:
    run, _ = run_of(Script(*tokens, error=LostError("gone")), max_new_tokens=7)
    run._text = Euros()  # type: ignore[assignment]
    pieces = list(run)
    assert (run.completion.text, run.completion.finish_reason) == (text, reason)
    assert b"".join(piece.token_bytes for piece in pieces).decode("utf-8", "replace") == text
    shown = "".join(piece.text for piece in pieces)
    assert text.startswith(shown)
    assert [piece.offset for piece in pieces][:4] == [0, 0, 0, 1]


def test_after_a_stop_string_nothing_more_is_shown() -> None:
    run, _ = run_of(Script(1, 2, 3, 1), stop=("€",))
    run._text = Euros()  # type: ignore[assignment]
    run._text.held = b""  # type: ignore[attr-defined]
    list(run)
    assert run.completion.text == ""


def test_a_server_lost_after_the_first_token_leaves_the_text_so_far() -> None:
    run, _ = run_of(Script(1, 2, error=LostError("gone")))
    list(run)
    done = run.completion
    assert (done.text, done.finish_reason, done.finish_detail) == ("ab", "server_lost", "gone")


def test_a_server_lost_before_the_first_token_is_an_error() -> None:
    run, fronts = run_of(Script(error=LostError("gone")))
    with pytest.raises(LostError, match="gone"):
        list(run)
    assert fronts.qsize() == 1


def test_a_missed_deadline_ends_it_and_says_why() -> None:
    run, _ = run_of(Script(1, error=TooSlowError("too slow")))
    list(run)
    assert (run.completion.finish_reason, run.completion.finish_detail) == ("deadline", "too slow")


def test_a_caller_that_stops_iterating_has_cancelled() -> None:
    source = Script(1, 2, 3)
    run, fronts = run_of(source)
    pieces = iter(run)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert run.completion.finish_reason == "cancelled"
    assert source.closed
    assert fronts.qsize() == 1


def test_cancelling_before_the_start_reaches_the_generation() -> None:
    source = Script(1, 2)
    run, _ = run_of(source)
    run.cancel()
    list(run)
    assert source.cancelled


def test_there_is_no_completion_before_the_end() -> None:
    run, _ = run_of(Script(1, EOS))
    with pytest.raises(InputError, match="not ended"):
        _ = run.completion


def test_the_trace_has_one_json_line_a_frame() -> None:
    trace = io.StringIO()
    run, _ = run_of(Script(1, 2, EOS), trace=trace)
    list(run)
    assert [json.loads(line)["sequence"] for line in trace.getvalue().splitlines()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"deadline_tbt_s": 0.0}, "must be above 0"),
        ({"deadline_tbt_s": float("nan")}, "must be above 0"),
        ({"max_new_tokens": 0}, "max new tokens is 0, must lie between 1"),
        ({"stop": ("a", "")}, "must not be empty"),
        ({"context": "slide"}, "refuse, shift"),
    ],
)
def test_impossible_requests_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        CompletionRequest(**fields)
