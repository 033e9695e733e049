"""A split that moves changes no token: down and up, at any moment, with drafts, on a bad link."""

from __future__ import annotations

import random
import secrets
import weakref
from collections.abc import Generator
from itertools import islice

import pytest

from edge.draft.ngram import NgramDrafter
from edge.errors import FrontError, InputError, LostError, TransportError
from edge.generation.drafting import DraftSelector
from edge.generation.kv_shipment import KvShipment, LeftBehind
from edge.generation.loop import RemoteGeneration
from edge.generation.moving import MovingGeneration
from edge.generation.prefill_planner import PrefillChoice, PrefillPlanner
from edge.generation.report import moves_of
from edge.generation.split_watch import FixedSplit
from edge.generation.token_source import NewToken
from edge.step_trace import StepTrace
from optimizer.policy.retry import RetryPolicy
from tests.edge.fakes import (
    VOCAB,
    WIDTH,
    FakeFront,
    FakeKv,
    FakeTransport,
    expected_tokens,
    random_faults,
)
from tests.edge.generation.remote import generation

COUNT = 40
PATIENT = RetryPolicy(recover_s=1e6, connect_s=1e6)
ALL = 10_000
SPLITS = (0, 1, 2, 3)


class Move:
    """One random case: a prompt, where the split may be, what the link does.

    capacities: of each split; a part of the answer at the plan's split, at least.
    """

    def __init__(self, seed: int, *, splits: tuple[int, ...] = (0, 1), ships: bool = False) -> None:
        self.rng = rng = random.Random(seed)
        # A period in the prompt lets the look-up drafter guess.
        period = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 4))]
        self.prompt = [*period * 3, *(rng.randrange(VOCAB) for _ in range(rng.randint(1, 12)))]
        self.capacity = rng.randint(1, len(self.prompt) + COUNT - 1)
        self.capacities = dict.fromkeys(splits, ALL) | {splits[-1]: self.capacity}
        self.drafts = rng.random() < 0.5
        self.planner = PrefillPlanner(split=1, num_layers=4, chunk_tokens=4)
        rate = rng.choice((0.0, 0.03, 0.1))
        fault = random_faults(seed, rate) if rate else self._none
        self.transport = FakeTransport(
            fault=fault, token_rows=ALL, quiet_polls=rng.choice((0, 1, 3, 100))
        )
        self.transport.continues = ships
        self.ships = ships
        self.front = FakeFront()
        self.front.split = splits[-1]

    @staticmethod
    def _none() -> TransportError | None:
        return None

    def part_at(
        self, split: int, most: int, is_moved: bool, left: LeftBehind | None
    ) -> RemoteGeneration:
        """A part of the answer: by token ids at split 0, and the prompt of a moved one."""
        drafting = None
        if self.drafts and split:
            drafting = DraftSelector(NgramDrafter(), clock=lambda: 0.0)
        prefill = PrefillChoice(self.planner, "cloud", split=split)
        shipment = None
        if left is not None and self.ships:
            shipment = KvShipment(left, level="lossless", hidden_size=WIDTH)
        elif left is not None:
            left.part.close()
        return generation(
            [self.transport],
            retry_policy=PATIENT,
            front=self.front,
            drafting=drafting,
            max_tokens=most,
            prefill=prefill if is_moved or split == 0 else None,
            split=split,
            keeps_front=is_moved,
            session_id=secrets.token_hex(8),
            shipment=shipment,
        )

    def run(self) -> MovingGeneration:
        """The generation of all parts."""
        return MovingGeneration(
            part_at=self.part_at,
            front=self.front,
            capacities=self.capacities,
            wish=FixedSplit(max(self.capacities)),
            max_new_tokens=COUNT,
        )


def answer(run: MovingGeneration, prompt: list[int]) -> Generator[NewToken, None, None]:
    return run.tokens(prompt, lambda step: None)


@pytest.mark.parametrize("seed", range(200))
def test_a_full_cache_moves_the_split_and_changes_no_token(seed: int) -> None:
    move = Move(seed)
    run = move.run()
    tokens = [token.token_id for token in islice(answer(run, move.prompt), COUNT)]
    assert tokens == expected_tokens(move.prompt, COUNT)
    assert run.moves == 1
    splits = [request.split for request in move.transport.requests]
    assert splits == sorted(splits, reverse=True)
    ids = [frame for stream in move.transport.streams for frame in stream.sent if frame.is_tokens]
    assert ids
    begins = len(move.prompt) + max(0, move.capacity - len(move.prompt))
    assert max(frame.first_position + len(frame.token_ids) for frame in ids) >= begins


@pytest.mark.parametrize("seed", range(200))
def test_moves_up_and_down_at_any_moment_change_no_token(seed: int) -> None:
    move = Move(seed, splits=SPLITS)
    move.capacities = dict.fromkeys(SPLITS, ALL)
    run = move.run()
    rng, wishes = move.rng, [SPLITS[-1]]
    tokens = []
    for token in answer(run, move.prompt):
        tokens.append(token.token_id)
        if rng.random() < 0.2:
            wishes.append(rng.choice(SPLITS))
            run.move_to(wishes[-1])
    assert tokens == expected_tokens(move.prompt, COUNT)
    opened = [request.split for request in move.transport.requests]
    changes = [split for split, last in zip(opened, [None, *opened], strict=False) if split != last]
    wanted = [split for split, last in zip(wishes, [None, *wishes], strict=False) if split != last]
    assert run.moves == len(changes) - 1
    # A wish with the last token comes too late.
    assert changes in (wanted, wanted[:-1])


@pytest.mark.parametrize("seed", range(200))
def test_moves_that_bring_keys_and_values_change_no_token(seed: int) -> None:
    """Down by keys and values, up by ids; on bad links, with drafts, at servers that may refuse."""
    move = Move(seed, splits=SPLITS, ships=True)
    rng = move.rng
    move.capacities = dict.fromkeys(SPLITS, ALL)
    if rng.random() < 0.3:  # a cache that becomes full as well
        move.capacities[3] = rng.randint(len(move.prompt), len(move.prompt) + COUNT)
    run = move.run()
    tokens = []
    for token in answer(run, move.prompt):
        tokens.append(token.token_id)
        if rng.random() < 0.2:
            run.move_to(rng.choice(SPLITS))
        move.transport.continues = rng.random() < 0.9
    assert tokens == expected_tokens(move.prompt, COUNT)
    # No session is left to a server: each stream was closed, or was dead.
    assert all(stream.is_ended or stream.dead for stream in move.transport.streams)
    for stream in move.transport.streams:
        assert all(frame.is_tokens for frame in stream.sent if frame.kv)


def test_on_a_good_link_every_move_down_brings_keys_and_values() -> None:
    move = Move(4, splits=SPLITS, ships=True)
    move.capacities = dict.fromkeys(SPLITS, ALL)
    move.transport.fault = Move._none
    run = move.run()
    steps: list[StepTrace] = []
    for index, _ in enumerate(run.tokens(move.prompt, steps.append)):
        if index in (5, 10, 15):
            run.move_to(3 - index // 5)
    streams = [stream for stream in move.transport.streams if stream.sent]
    bring_kv = [any(frame.kv for frame in stream.sent) for stream in streams]
    assert bring_kv == [False, True, True, True]
    for stream in streams[1:]:
        # Keys and values of all but the last token, whose row or id asks for the next one.
        first = next(frame for frame in stream.sent if not frame.kv)
        assert len(first.token_ids) == 1
        assert first.want_token
    assert run.moves == 3
    assert [entry["by"] for entry in moves_of(steps)] == ["kv"] * 3
    assert [step.level for step in steps if step.is_kv] == ["kv:lossless"] * 3


@pytest.mark.parametrize("refused", [False, True])
def test_what_was_cached_is_let_go_once_it_is_sent_or_not_wanted(refused: bool) -> None:
    move = Move(4, splits=SPLITS, ships=True)
    move.capacities = dict.fromkeys(SPLITS, ALL)
    move.transport.fault = Move._none
    move.transport.continues = not refused
    cached = []
    cached_from = move.front.cached_from

    def watched(split: int) -> FakeKv | None:
        kv = cached_from(split)
        cached.append(weakref.ref(kv))
        return kv

    move.front.cached_from = watched  # type: ignore[method-assign]
    run = move.run()
    for index, _ in enumerate(answer(run, move.prompt)):
        if index == 5:
            run.move_to(1)
        if index == 7:
            assert len(cached) == 1
            assert cached[0]() is None


def test_a_stream_that_breaks_amid_keys_and_values_goes_on_by_ids() -> None:
    move = Move(4, splits=SPLITS, ships=True)
    move.capacities = dict.fromkeys(SPLITS, ALL)
    streams = move.transport.streams

    def fault() -> TransportError | None:
        """The first stream that has sent keys and values breaks before they are answered."""
        sent = [stream for stream in streams if any(frame.kv for frame in stream.sent)]
        return LostError("cut") if sent and streams[-1] is sent[0] else None

    move.transport.fault = fault
    run = move.run()
    tokens = []
    for token in answer(run, move.prompt):
        tokens.append(token.token_id)
        if len(tokens) == 6:
            run.move_to(1)
    assert tokens == expected_tokens(move.prompt, COUNT)
    first, second = streams[-2:]
    assert any(frame.kv for frame in first.sent)
    assert not any(frame.kv for frame in second.sent)
    assert any(frame.is_tokens for frame in second.sent)
    asked = [request.kv_tokens for request in move.transport.requests[-2:]]
    assert asked == [len(move.prompt) + 5, 0]


def test_each_split_is_used_until_its_cache_is_full() -> None:
    move = Move(3, splits=SPLITS)
    move.prompt = move.prompt[:6]
    move.capacities = {3: 10, 2: 15, 1: 30, 0: ALL}
    run = move.run()
    tokens = [token.token_id for token in answer(run, move.prompt)]
    assert tokens == expected_tokens(move.prompt, COUNT)
    splits = [request.split for request in move.transport.requests]
    assert list(dict.fromkeys(splits)) == [3, 2, 1, 0]
    assert run.moves == 3
    reached = {request.split: request.max_tokens for request in move.transport.requests}
    assert reached == {3: 10, 2: 15, 1: 30, 0: 6 + COUNT}


def test_towards_the_cloud_the_device_computes_no_row_twice() -> None:
    move = Move(11, splits=SPLITS)
    move.drafts = False
    computed = 0
    forward = move.front.forward

    def counting(token_ids: object) -> object:
        nonlocal computed
        computed += len(token_ids)  # type: ignore[arg-type]
        return forward(token_ids)  # type: ignore[arg-type]

    move.front.forward = counting  # type: ignore[assignment,method-assign]
    move.capacities = {3: len(move.prompt) + 10, 2: ALL, 1: ALL, 0: ALL}
    move.transport.fault = Move._none
    run = move.run()
    for index, _ in enumerate(answer(run, move.prompt)):
        if index == 20:
            run.move_to(1)
    assert computed == len(move.prompt) + COUNT - 1


def test_a_segment_that_cannot_be_loaded_leaves_the_answer_where_it_is() -> None:
    move = Move(5, splits=SPLITS)
    move.capacities = dict.fromkeys(SPLITS, ALL)
    move.front.split = 1

    def fails(split: int) -> None:
        if split > 1:
            raise FrontError("no memory")

    move.front.move_to = fails  # type: ignore[method-assign]
    run = move.run()
    tokens = [token.token_id for token in answer(run, move.prompt)]
    assert tokens == expected_tokens(move.prompt, COUNT)
    assert {request.split for request in move.transport.requests} == {1}
    assert run.detail == "the split stayed at 1: no memory"


def test_a_split_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="no split 7: choose one of 0, 1, 2, 3"):
        Move(1, splits=SPLITS).run().move_to(7)


def test_tokens_that_fit_nowhere_are_an_input_error() -> None:
    move = Move(2)
    move.capacities = {0: 5, 1: 5}
    with pytest.raises(InputError, match="holds no more than"):
        list(answer(move.run(), move.prompt))
