"""Level control inside a generation: levels that follow the link, decisions traced, early ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pytest

from codec.ladder import Ladder
from edge.errors import DeadlineError, LostError, TooSlowError
from edge.generation.level_selector import LevelSelector
from edge.net.route import Route
from edge.net.transport import Received
from edge.step_trace import StepTrace
from optimizer.policy.retry import Clock, RetryPolicy
from protos.messages import Open
from tests.edge.fakes import WIDTH, FakeStream, FakeTransport, expected_tokens
from tests.edge.generation.remote import PROMPT, ManualTime, generation

DEADLINE_S = 0.1


class PaddedLadder:
    """Three levels that differ in size alone: a lossless frame, so many bytes longer."""

    padding: Final = {"big": 4_000, "middle": 1_000, "small": 0}
    names = tuple(padding)

    def __init__(self) -> None:
        self._lossless = Ladder.lossless(WIDTH)

    def encode(self, level: str, rows: Any, token_ids: Any) -> bytes:
        frame = self._lossless.encode("lossless", rows, token_ids)
        return bytes([self.names.index(level)]) + frame + bytes(self.padding[level])

    def level_of(self, payload: bytes) -> str:
        return self.names[payload[0]]

    def decode(self, payload: bytes, *, num_rows: int, token_ids: Any) -> Any:
        frame = payload[1 : len(payload) - self.padding[self.level_of(payload)]]
        return self._lossless.decode(frame, num_rows=num_rows, token_ids=token_ids)


def ladder() -> Any:
    return PaddedLadder()


@dataclass
class SlowLink(FakeTransport):
    """Moves the clock by what each message takes at `rate`; loses everything from `cut` on."""

    now_s: float = 0.0
    rate: float = 1e9
    cut_after: int = 10**9
    sizes: list[int] = field(default_factory=list)

    def open(self, request: Open, timeout_s: float, route: Route | None = None) -> FakeStream:
        stream = super().open(request, timeout_s, route)
        return SlowStream(self, request, stream.cloud)


class SlowStream(FakeStream):
    transport: SlowLink

    def send(self, frame: object) -> int:
        self.cloud.ladder = ladder()
        size = super().send(frame)  # type: ignore[arg-type]
        self.transport.sizes.append(size)
        return size

    def receive(self, timeout_s: float) -> Received:
        link = self.transport
        if len(link.sizes) > link.cut_after:
            link.now_s += timeout_s
            raise DeadlineError(f"no answer within {timeout_s:g} s")
        received = super().receive(timeout_s)
        if link.sizes:
            link.now_s += 0.02 + link.sizes[-1] / link.rate
        return received._replace(at_s=link.now_s)


def run_over(link: SlowLink, count: int) -> tuple[list[int], list[StepTrace]]:
    selector = LevelSelector(ladder=ladder(), levels=PaddedLadder.names, deadline_s=DEADLINE_S)
    steps: list[StepTrace] = []
    run = generation(
        [link],
        Clock(now=lambda: link.now_s, sleep=lambda seconds: None),
        selector=selector,
        max_tokens=200,
    )
    tokens: list[int] = []
    try:
        for token in run.tokens(PROMPT, steps.append):
            tokens.append(token.token_id)
            if len(tokens) == count:
                break
    finally:
        link.steps = steps  # type: ignore[attr-defined]
        link.tokens = tokens  # type: ignore[attr-defined]
    return tokens, steps


def test_the_level_follows_the_link_and_the_tokens_do_not_change() -> None:
    tokens, steps = run_over(SlowLink(rate=20_000), 40)
    assert tokens == expected_tokens(PROMPT, 40)
    decoding = [step for step in steps if step.phase == "decode"]
    assert decoding[0].level == "big"
    assert decoding[-1].level in ("middle", "small")
    decisions = [step.decision for step in decoding if step.decision]
    assert decisions
    assert decisions[0].startswith("down to ")
    late = [step.round_trip_s > DEADLINE_S for step in decoding]
    assert sum(late) <= 2


def test_a_fast_link_changes_nothing() -> None:
    _, steps = run_over(SlowLink(), 30)
    assert {step.level for step in steps} == {"big"}
    assert not any(step.decision for step in steps)


def test_a_hopeless_link_ends_the_answer_and_says_why() -> None:
    link = SlowLink(rate=200)
    with pytest.raises(TooSlowError, match="longer than 100 ms, at the smallest level small"):
        run_over(link, 100)
    tokens: list[int] = link.tokens  # type: ignore[attr-defined]
    assert 20 < len(tokens) < 60
    assert tokens == expected_tokens(PROMPT, len(tokens))


def test_a_step_that_is_never_answered_ends_it_sooner_than_the_retry_policy_would() -> None:
    link = SlowLink(cut_after=8)
    with pytest.raises(TooSlowError, match="no answer within 5 s"):
        run_over(link, 100)
    assert link.now_s < 10


def test_without_a_deadline_nothing_is_weighed_and_nothing_decided() -> None:
    selector = LevelSelector(ladder=ladder(), levels=("middle",))
    selector.weigh(np.zeros((3, WIDTH), np.float32), np.zeros(3, np.int64))
    assert (selector.level, selector.stall_s, selector.gave_up) == ("middle", None, None)


def test_a_server_that_takes_the_session_and_loses_it_again_is_given_up() -> None:
    """Connecting works every time, nothing is ever answered: the limit counts from the start."""
    calls = iter(range(10**6))

    def fault() -> LostError | None:
        # The first stream brings five messages, every later one only its `Opened`.
        call = next(calls)
        if flaky.opens == 1:
            return LostError("cut") if call >= 5 else None
        return None if call % 2 == 0 else LostError("cut")

    flaky = FakeTransport(fault=fault)
    time = ManualTime()
    run = generation([flaky], time.clock(), RetryPolicy(recover_s=20.0))
    with pytest.raises(LostError, match="no way back within 20 s"):
        list(run.tokens(PROMPT, lambda step: None))
    assert 10.0 <= time.now_s <= 25.0
    assert flaky.opens < 20
