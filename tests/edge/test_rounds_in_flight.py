"""Rounds in flight under hypothesis: any drafts, delays and losses give the model's own tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from codec.ladder import Ladder
from edge.session import Phase, Rows, Session
from protos.messages import Result
from tests.edge.fakes import VOCAB, WIDTH, FakeCloud, FakeFront, expected_tokens

PROMPT = [3, 1, 4, 1, 5, 9, 2]
TRUTH = expected_tokens(PROMPT, 400)
drafts = st.lists(st.booleans(), max_size=4)  # whether each guess is right


class InFlight(RuleBasedStateMachine):
    """An edge that guesses as it likes, a cloud that answers when it likes, a link that breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.front = FakeFront()
        self.ladder = Ladder.lossless(WIDTH)
        self.session = Session(PROMPT, chunk_tokens=3)
        self.assumed = 0  # new tokens that the cloud will have told if all guesses are right
        self.cloud = FakeCloud()
        self.answers: list[Result] = []
        self.connect()

    def connect(self) -> None:
        self.cloud, self.answers = FakeCloud(), []
        self.session.open()
        self.session.opened()

    def guesses(self, first: int, right: list[bool]) -> list[int]:
        return [
            (TRUTH[first + index] + (0 if is_right else 1)) % VOCAB
            for index, is_right in enumerate(right)
        ]

    def send(self, rows: Rows) -> None:
        if self.front.num_tokens > rows.first_position:
            self.front.rollback(rows.first_position)
        ids = np.asarray(rows.token_ids, dtype=np.int64)
        frame = self.session.sent(
            rows, self.ladder.encode("lossless", self.front.forward(ids), ids)
        )
        self.answers.append(self.cloud.answer(frame))

    @property
    def num_new(self) -> int:
        return len(self.session.tokens) - len(PROMPT)

    @rule(right=drafts)
    @precondition(lambda self: self.session.phase in (Phase.PREFILLING, Phase.READY))
    def send_next(self, right: list[bool]) -> None:
        rows = self.session.next_rows(self.guesses(self.num_new, right))
        assert rows is not None
        self.send(rows)
        self.assumed = self.num_new + rows.num_drafts + rows.want_token

    @rule(right=st.lists(st.booleans(), min_size=1, max_size=4))
    @precondition(lambda self: self.session.phase is Phase.WAITING)
    def send_ahead(self, right: list[bool]) -> None:
        rows = self.session.rows_ahead(self.guesses(self.assumed - 1, right))
        assert rows is not None
        self.send(rows)
        self.assumed += len(right)

    @rule()
    @precondition(lambda self: self.answers)
    def take_answer(self) -> None:
        self.session.received(self.answers.pop(0))

    @rule()
    def lose_the_stream(self) -> None:
        self.session.lost()
        self.connect()
        for frame in self.session.replay():
            self.answers.append(self.cloud.answer(frame))

    @invariant()
    def the_tokens_are_the_models(self) -> None:
        assert self.session.tokens[len(PROMPT) :] == TRUTH[: self.num_new]

    @invariant()
    def an_idle_session_waits_for_nothing(self) -> None:
        if self.session.phase is Phase.WAITING:
            assert self.answers

    def teardown(self) -> None:
        """Whatever happened, it goes on from here: ten more tokens come."""
        target = self.num_new + 10
        for _ in range(200):
            if self.num_new >= target:
                return
            if self.answers:
                self.session.received(self.answers.pop(0))
            elif (rows := self.session.next_rows()) is not None:
                self.send(rows)
        raise AssertionError("the session is stuck")


InFlight.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestInFlight = InFlight.TestCase
