"""A split that moves changes no token: down and up, at any moment, with drafts, on a bad link."""

from __future__ import annotations

import random
from collections.abc import Generator
from itertools import islice

import pytest

from edge.draft.ngram import NgramDrafter
from edge.errors import FrontError, InputError, TransportError
from edge.generation.drafting import DraftSelector
from edge.generation.loop import RemoteGeneration
from edge.generation.moving import MovingGeneration
from edge.generation.prefill_planner import PrefillChoice, PrefillPlanner
from edge.generation.split_watch import FixedSplit
from edge.generation.token_source import NewToken
from optimizer.policy.retry import RetryPolicy
from tests.edge.fakes import VOCAB, FakeFront, FakeTransport, expected_tokens, random_faults
from tests.edge.generation.remote import generation

COUNT = 40
PATIENT = RetryPolicy(recover_s=1e6, connect_s=1e6)
ALL = 10_000
SPLITS = (0, 1, 2, 3)


class Move:
    """One random case: a prompt, where the split may be, what the link does.

    capacities: of each split; a part of the answer at the plan's split, at least.
    """

    def __init__(self, seed: int, *, splits: tuple[int, ...] = (0, 1)) -> None:
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
        self.front = FakeFront()
        self.front.split = splits[-1]

    @staticmethod
    def _none() -> TransportError | None:
        return None

    def part_at(self, split: int, most: int, is_moved: bool) -> RemoteGeneration:
        """A part of the answer: by token ids at split 0, and the prompt of a moved one."""
        drafting = None
        if self.drafts and split:
            drafting = DraftSelector(NgramDrafter(), clock=lambda: 0.0)
        prefill = PrefillChoice(self.planner, "cloud", split=split)
        return generation(
            [self.transport],
            retry_policy=PATIENT,
            front=self.front,
            drafting=drafting,
            max_tokens=most,
            prefill=prefill if is_moved or split == 0 else None,
            split=split,
            keeps_front=is_moved,
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
