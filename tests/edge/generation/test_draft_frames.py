"""Whatever is guessed, right or wrong, in turn or ahead: the tokens are those of plain decoding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice

import pytest

from edge.draft.base import Guess, Rows
from edge.draft.ngram import NgramDrafter
from edge.generation.drafting import DraftSelector
from edge.generation.report import draft_figures
from edge.net.route import Route
from edge.net.transport import Received
from edge.step_trace import StepTrace
from optimizer.policy.retry import Clock, RetryPolicy
from protos.messages import Open
from tests.edge.fakes import FakeStream, FakeTransport, expected_tokens, random_faults
from tests.edge.generation.remote import PROMPT, generation

MAX_TOKENS = 300


class KnowingDrafter:
    """Guesses the model's next token with the given chance, and checks what it is told."""

    def __init__(self, chance: float, seed: int) -> None:
        self.tokens: list[int] = []
        self._chance = chance
        self._rng = random.Random(seed)

    def extend(self, token_ids: Sequence[int], rows: Rows | None) -> None:
        assert rows is not None
        assert [int(row[1]) for row in rows] == [
            len(self.tokens) + offset for offset in range(len(token_ids))
        ]
        self.tokens.extend(token_ids)

    def rollback(self, num_tokens: int) -> None:
        assert num_tokens < len(self.tokens)
        del self.tokens[num_tokens:]

    def guesses(self) -> tuple[Guess, ...]:
        if self._rng.random() < 0.1:
            return ()
        right = expected_tokens(self.tokens, 1)[0]
        first = right if self._rng.random() < self._chance else (right + 1) % 50
        second = right if self._rng.random() < self._chance else (right + 2) % 50
        others = () if second == first else (Guess(second, "second", 0.5),)
        return Guess(first, "k", 0.6), *others


class Tick:
    """A clock that goes on by a hundredth of a second whenever it is read."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.01
        return self.now_s


class SlowStream(FakeStream):
    """A second passes until an answer is there, or the edge was busy for a while."""

    transport: SlowTransport

    def receive(self, timeout_s: float) -> Received:
        self.transport.tick.now_s += 1.0
        return super().receive(timeout_s)

    def poll(self) -> Received | None:
        has_come = bool(self.inbox) and self.transport.rng.random() < 0.05
        return super().receive(0.0) if has_come and not self.dead else None


class SlowTransport(FakeTransport):
    """Its streams are slow ones."""

    tick: Tick
    rng: random.Random

    def open(self, request: Open, timeout_s: float, route: Route | None = None) -> FakeStream:
        stream = super().open(request, timeout_s, route)
        stream.__class__ = SlowStream
        return stream


def run_drafted(
    drafter: KnowingDrafter | NgramDrafter, transports: list[SlowTransport], count: int
) -> tuple[list[int], list[StepTrace]]:
    tick = Tick()
    clock = Clock(now=tick, sleep=lambda seconds: None)
    for transport in transports:
        transport.tick = transport.clock = tick
        transport.rng = random.Random(0)
    run = generation(
        transports,
        clock,
        RetryPolicy(recover_s=1e6),
        drafting=DraftSelector(drafter, clock=tick),
        max_tokens=MAX_TOKENS,
    )
    steps: list[StepTrace] = []
    iterator = run.tokens(PROMPT, steps.append)
    tokens = [token.token_id for token in islice(iterator, count)]
    iterator.close()
    return tokens, steps


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.9, 1.0])
def test_guesses_change_no_token(chance: float) -> None:
    tokens, _ = run_drafted(KnowingDrafter(chance, 1), [SlowTransport()], 80)
    assert tokens == expected_tokens(PROMPT, 80)


def test_looked_up_guesses_change_no_token() -> None:
    tokens, _ = run_drafted(NgramDrafter(), [SlowTransport()], 80)
    assert tokens == expected_tokens(PROMPT, 80)


def test_a_drafter_that_knows_saves_most_round_trips_and_keeps_frames_in_flight() -> None:
    tokens, steps = run_drafted(KnowingDrafter(1.0, 1), [SlowTransport()], 200)
    figures = draft_figures(steps)
    assert len(tokens) == 200
    assert figures["frames_ahead"] > 0
    assert figures["tokens_per_frame"] > 3


def test_a_drafter_that_is_always_wrong_is_hardly_listened_to_after_a_while() -> None:
    _, steps = run_drafted(KnowingDrafter(0.0, 1), [SlowTransport()], 80)
    early, late = steps[3:13], steps[-10:]
    assert sum(step.num_drafts for step in late) < sum(step.num_drafts for step in early)


def test_no_row_reaches_beyond_what_the_session_reserved() -> None:
    _, steps = run_drafted(KnowingDrafter(1.0, 1), [SlowTransport()], MAX_TOKENS - len(PROMPT))
    assert max(step.first_position + step.num_rows for step in steps) <= MAX_TOKENS


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_frame_has_more_rows_than_the_server_takes(most: int) -> None:
    transport = SlowTransport(max_frame_tokens=most)
    tokens, steps = run_drafted(KnowingDrafter(1.0, 1), [transport], 80)
    assert tokens == expected_tokens(PROMPT, 80)
    assert max(step.num_rows for step in steps) == most


@pytest.mark.parametrize("seed", range(15))
def test_faults_with_rounds_in_flight_change_no_token(seed: int) -> None:
    transports: list[SlowTransport] = [
        SlowTransport(fault=random_faults(seed, 0.08)) for _ in range(2)
    ]
    tokens, _ = run_drafted(KnowingDrafter(0.8, seed), transports, 80)
    assert tokens == expected_tokens(PROMPT, 80)
    assert sum(transport.opens for transport in transports) > 1
