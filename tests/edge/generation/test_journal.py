"""Rounds in flight under hypothesis: any drafts, delays and losses give the model's own tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from codec.ladder import Ladder
from edge.generation.phases import Phase
from edge.generation.row_span import RowSpan
from edge.generation.session import EdgeSession
from protos.messages import Result
from tests.edge.fakes import VOCAB, WIDTH, FakeCloud, FakeFront, expected_tokens

PROMPT = [3, 1, 4, 1, 5, 9, 2]
TRUTH = expected_tokens(PROMPT, 400)
drafts = st.lists(st.booleans(), max_size=4)  # whether each guess is right
branch = st.lists(st.booleans(), min_size=1, max_size=2)


class InFlight(RuleBasedStateMachine):
    """An edge that guesses as it likes, a cloud that answers when it likes, a link that breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.front = FakeFront()
        self.ladder = Ladder.lossless(WIDTH)
        self.session = EdgeSession(PROMPT, chunk_tokens=3)
        self.cloud = FakeCloud()
        self.answers: list[Result] = []
        self.connect()

    def connect(self) -> None:
        self.cloud, self.answers = FakeCloud(), []
        self.session.open()
        self.session.opened()

    def guesses(self, first_position: int, right: list[bool]) -> list[int]:
        """The answer's tokens from a position on, or others. A right one behind a wrong one is the
        dangerous kind: it must not pass for what it would have been behind the right one."""
        first = first_position - len(PROMPT)
        return [
            (TRUTH[first + index] + (0 if is_right else 1)) % VOCAB
            for index, is_right in enumerate(right)
        ]

    @property
    def path(self) -> list[int]:
        """All tokens up to the last guess."""
        return [*self.session.tokens, *self.session.guesses()]

    def send(self, rows: RowSpan) -> None:
        """Compute the rows behind what they stand on, whatever the front has in its cache."""
        self.front.rollback(0)
        before = [*self.path[: rows.first_position], *rows.token_ids]
        hidden = self.front.forward(np.asarray(before, dtype=np.int64))[rows.first_position :]
        ids = np.asarray(rows.token_ids, dtype=np.int64)
        frame = self.session.sent(rows, self.ladder.encode("lossless", hidden, ids))
        self.answers.append(self.cloud.answer(frame))

    @property
    def num_new(self) -> int:
        return len(self.session.tokens) - len(PROMPT)

    @rule(right=drafts)
    @precondition(lambda self: self.session.phase in (Phase.PREFILLING, Phase.READY))
    def send_next(self, right: list[bool]) -> None:
        rows = self.session.next_rows(self.guesses(len(self.session.tokens), right))
        assert rows is not None
        self.send(rows)

    @rule(right=st.lists(st.booleans(), min_size=1, max_size=4))
    @precondition(lambda self: self.session.phase is Phase.WAITING)
    def send_ahead(self, right: list[bool]) -> None:
        rows = self.session.rows_ahead(self.guesses(len(self.path), right))
        if rows is not None:
            self.send(rows)

    @rule(choices=st.lists(st.tuples(st.integers(1, 4), branch), min_size=1, max_size=4))
    @precondition(lambda self: self.session.phase is Phase.WAITING)
    def send_alternatives(self, choices: list[tuple[int, list[bool]]]) -> None:
        for back, right in choices:
            at = max(len(self.path) - back, len(PROMPT))
            rows = self.session.rows_ahead(self.guesses(at, right), at=at)
            if rows is not None:
                self.send(rows)

    @rule(at=st.integers(0, 400))
    @precondition(lambda self: self.session.phase is Phase.WAITING)
    def no_alternative_for_what_is_known(self, at: int) -> None:
        if at < len(self.session.tokens) or at > len(self.path):
            assert self.session.rows_ahead((1,), at=at) is None

    @rule()
    @precondition(lambda self: self.answers)
    def take_answer(self) -> None:
        result, journal, before = self.answers.pop(0), self.session.journal, self.path
        stands = journal.stands(result.sequence, result.token_ids)
        self.session.received(result)
        if result.token_ids:
            goes_on = self.session.phase is Phase.WAITING
            assert stands == (goes_on and self.path == before)
        else:
            assert not stands

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


def waiting_session() -> EdgeSession:
    """The prompt is answered, the first token is on its way, and two guesses went ahead."""
    session = EdgeSession(PROMPT, chunk_tokens=9)
    session.open()
    session.opened()
    cloud = FakeCloud()
    front, ladder = FakeFront(), Ladder.lossless(WIDTH)

    def send(rows: RowSpan | None) -> Result:
        assert rows is not None
        front.rollback(rows.first_position)
        ids = np.asarray(rows.token_ids, dtype=np.int64)
        return cloud.answer(session.sent(rows, ladder.encode("lossless", front.forward(ids), ids)))

    session.received(send(session.next_rows()))
    send(session.next_rows())
    send(session.rows_ahead(((TRUTH[1] + 1) % VOCAB, 7)))
    return session


def test_alternatives_go_from_the_last_place_to_the_first() -> None:
    session = waiting_session()
    at = len(PROMPT) + 1
    early = session.rows_ahead((TRUTH[1],), at=at)
    assert early is not None
    session.sent(early, b"")
    # With the first guess gone, its answer could name just this token, behind other tokens.
    assert session.rows_ahead((TRUTH[2],), at=at + 1) is None
    assert session.rows_ahead((9,), at=at) is not None


def test_no_guess_goes_on_while_an_alternative_is_open() -> None:
    session = waiting_session()
    at = len(PROMPT) + 1
    assert session.rows_ahead((5,)) is not None
    branch_rows = session.rows_ahead((TRUTH[1],), at=at)
    assert branch_rows is not None
    session.sent(branch_rows, b"")
    assert session.rows_ahead((5,)) is None
    session.received(Result(sequence=1, token_ids=(TRUTH[1],), num_tokens=at))
    assert session.phase is Phase.WAITING  # the alternative is under way already
    assert session.received(Result(sequence=2, token_ids=(), num_tokens=at)) == ()
    assert session.rows_ahead((TRUTH[2],)) == RowSpan(at + 1, (TRUTH[2],), 0, True, ahead=True)
