"""Early frames under drawn servers, faults, limits and guesses: the tokens are the same ones."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import pytest

from edge.draft.ngram import NgramDrafter
from edge.errors import BusyError, ConnectError, LostError, RefusedError, TransportError
from edge.generation.drafting import DraftSelector
from edge.generation.prefill_planner import PrefillChoice, PrefillPlanner
from edge.generation.prefix_memory import PrefixMemory
from edge.net.route import Route
from edge.net.transport import Received
from optimizer.policy.retry import Clock, RetryPolicy
from protos.messages import Frame, Open, Opened, Result
from protos.prefix import begin_chain, extend_chain
from tests.edge.fakes import FakeCloud, FakeFront, FakeStream, FakeTransport, expected_tokens
from tests.edge.generation.remote import generation

COUNT = 12  # new tokens of each turn
FAR = 100  # polls without an answer: longer than any prompt here takes
PATIENT = RetryPolicy(connect_s=1e6, recover_s=1e6)


class DrawnCloud(FakeCloud):
    """Answers frames that come again, and keeps beginnings under their names, as a server does."""

    def __init__(self, request: Open, beginnings: dict[bytes, list[Frame]]) -> None:
        super().__init__()
        self.num_begun = 0  # frames that another session sent
        self._seen: list[Frame] = []
        self._results: list[Result] = []
        self._beginnings = beginnings
        self._chain: bytes | None = begin_chain(request)

    def begin(self, frames: list[Frame]) -> None:
        """Hold what another session sent."""
        for frame in frames:
            self.answer(frame)
        self.num_begun = len(frames)

    def answer(self, frame: Frame) -> Result:
        if frame.sequence < self.num_begun:
            kept = frame.first_position + len(frame.token_ids)
            return Result(sequence=frame.sequence, token_ids=(), num_tokens=kept)
        if frame.sequence < self.next_sequence:
            if self._seen[frame.sequence] != frame:
                raise AssertionError(f"frame {frame.sequence} came again with other content")
            return self._results[frame.sequence]
        self._seen.append(frame)
        self._results.append(super().answer(frame))
        if frame.want_token or frame.ahead:
            self._chain = None
        if self._chain is not None:
            self._chain = extend_chain(self._chain, frame)
            self._beginnings[self._chain] = list(self._seen)
        return self._results[-1]


class DrawnStream(FakeStream):
    """Runs as many frames as were drawn and is cut then; `has_ended`: closed or aborted."""

    transport: DrawnTransport
    cloud: DrawnCloud
    num_left: int
    limits: Opened
    has_ended = False
    refusal = ""

    def send(self, frame: Frame) -> int:
        assert not self.has_ended
        self.sent.append(frame)
        end = frame.first_position + len(frame.token_ids)
        if frame.sequence >= self.cloud.next_sequence:
            if frame.is_tokens and end > self.limits.token_rows:
                self.refusal = "token frames beyond what was granted"
            is_prompt = frame.first_position < self.transport.case.num_prompt
            if is_prompt and len(frame.token_ids) > self.limits.max_frame_tokens:
                self.refusal = "too many rows"
        if not self.dead and self.num_left and not self.refusal:
            self.num_left -= 1
            self.inbox.append(self.cloud.answer(frame))
        return len(frame.hidden) + 10

    def receive(self, timeout_s: float) -> Received:
        if not self.inbox and not self.error:
            self.dead = True
            raise RefusedError(self.refusal) if self.refusal else LostError("cut")
        received = super().receive(timeout_s)
        if received.message is self.limits:
            self.transport.case.told = self.transport.max_frame_tokens, self.transport.token_rows
        return received

    def poll(self) -> Received | None:
        return None if self.transport.case.rng.random() < 0.4 else super().poll()

    def close(self) -> None:
        super().close()
        self.has_ended = True
        self.transport.kept.clear()

    def abort(self) -> None:
        super().abort()
        self.has_ended = True


@dataclass
class DrawnCase:
    """What all servers of one case have in common: once one has told its limits, all have them."""

    rng: random.Random
    now_s: float = 0.0
    num_prompt: int = 0
    told: tuple[int, int] | None = None  # rows of a frame, and rows that may be tokens

    def tick(self) -> float:
        """A clock that every look moves on."""
        self.now_s += 0.01
        return self.now_s


@dataclass
class DrawnTransport(FakeTransport):
    """Its servers have drawn limits, resume sessions, and hold beginnings of earlier ones."""

    case: DrawnCase = field(kw_only=True)
    kept: dict[str, DrawnCloud] = field(default_factory=dict)
    beginnings: dict[bytes, list[Frame]] = field(default_factory=dict)

    def open(self, request: Open, timeout_s: float, route: Route | None = None) -> FakeStream:
        rng = self.case.rng
        drawn = rng.choice([512, 512, 3, 4, 1]), rng.choice([0, 3, 4, 7, 100])
        self.max_frame_tokens, self.token_rows = self.case.told or drawn
        self.quiet_polls = rng.choice([0, 0, 1, 2, FAR])
        stream = super().open(request, timeout_s, route)
        stream.__class__ = DrawnStream
        assert isinstance(stream, DrawnStream)
        stream.error = rng.choice(
            [None] * 9
            + [BusyError("full", retry_after_s=0.1), ConnectError("away"), LostError("cut")]
        )
        stream.cloud = self._cloud(request, is_lost=stream.error is not None)
        stream.num_left = rng.choice([0, 1, 2, 3, 30, 999])
        (opened,) = stream.inbox
        assert isinstance(opened, Opened)
        stream.limits = replace(
            opened,
            held_frames=stream.cloud.next_sequence,
            token_rows=0 if stream.cloud.num_begun else opened.token_rows,
        )
        stream.inbox = [stream.limits]
        return stream

    def _cloud(self, request: Open, *, is_lost: bool) -> DrawnCloud:
        """A kept session, one that begins with frames of another one, or an empty one.

        is_lost: the edge will not hear of it. A beginning is not kept then.
        """
        rng = self.case.rng
        if request.session_id in self.kept and rng.random() < 0.5:
            return self.kept[request.session_id]
        cloud = DrawnCloud(request, self.beginnings)
        known = [name for name in request.prefix_hashes if name in self.beginnings]
        if known and rng.random() < 0.7:
            cloud.begin(self.beginnings[rng.choice(known)])
        if not (is_lost and cloud.num_begun):
            self.kept[request.session_id] = cloud
        return cloud


def drawn_transport(case: DrawnCase) -> DrawnTransport:
    rate = case.rng.choice([0.0, 0.05, 0.2])

    def fault() -> TransportError | None:
        return LostError("cut") if case.rng.random() < rate else None

    return DrawnTransport(case=case, fault=fault, clock=case.tick)


def prefill_at(place: str) -> PrefillChoice | None:
    planner = PrefillPlanner(split=1, num_layers=4, chunk_tokens=4)
    if place == "edge":
        return None
    return PrefillChoice(planner, "both" if place == "both" else "cloud", split=1)


@pytest.mark.parametrize("seed", range(40))
def test_three_turns_of_a_chat_bring_the_tokens_of_the_model_and_end_every_stream(
    seed: int,
) -> None:
    rng = random.Random(seed)
    case = DrawnCase(rng)
    clock = Clock(now=case.tick, sleep=lambda seconds: None)
    transports = [drawn_transport(case) for _ in range(rng.choice([1, 2]))]
    place, memory = rng.choice(["edge", "cloud", "both"]), PrefixMemory()
    has_drafts = rng.random() < 0.5
    prompt = [rng.randrange(50) for _ in range(rng.choice([1, 2, 5, 10, 23, 40]))]
    front = FakeFront()  # its cache stays between the turns, and may hold another chat's tokens
    for _ in range(3):
        if rng.random() < 0.3:
            front.rollback(rng.randint(0, front.num_tokens))
            front.forward(np.array([rng.randrange(50) for _ in range(3)]))
        case.num_prompt = len(prompt)
        run = generation(
            transports,
            clock,
            PATIENT,
            front=front,
            drafting=DraftSelector(NgramDrafter(), clock=case.tick) if has_drafts else None,
            prefill=prefill_at(place),
            prefixes=memory,
        )
        iterator = run.tokens(prompt, lambda step: None)
        tokens = [token.token_id for token in islice(iterator, COUNT)]
        iterator.close()
        assert tokens == expected_tokens(prompt, COUNT)
        for transport in transports:
            transport.kept.clear()
            assert all(
                isinstance(stream, DrawnStream) and stream.has_ended for stream in transport.streams
            )
        prompt = [*prompt, *tokens]
