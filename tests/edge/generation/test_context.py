"""Beyond the plan's tokens: what is kept, and that the rest of the answer is a fresh prompt's."""

from __future__ import annotations

from itertools import islice

import pytest

from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from edge.generation.context import ShiftingGeneration
from edge.generation.token_source import TokenSource
from optimizer.policy.kv.shift import Shift
from tests.edge.fakes import FakeFront, FakeTransport, expected_tokens
from tests.edge.generation.remote import PROMPT, generation


def kept_tokens(tokens: list[int], capacity: int) -> list[int]:
    return [tokens[position] for position in Shift().kept(len(tokens), capacity)]


def shifting(capacity: int, count: int) -> tuple[ShiftingGeneration, list[int]]:
    front = FakeFront()
    limits: list[int] = []

    def part(index: int, max_tokens: int, num_prompt: int) -> TokenSource:
        limits.append(max_tokens)
        return generation([FakeTransport()], front=front)

    source = ShiftingGeneration(
        generation_of=part, front=front, capacity=capacity, policy=Shift(), max_new_tokens=count
    )
    return source, limits


def test_every_part_answers_as_a_fresh_generation_with_the_kept_prompt() -> None:
    source, limits = shifting(capacity=24, count=50)
    tokens = [token.token_id for token in source.tokens(PROMPT, lambda step: None)]
    expected: list[int] = []
    while len(expected) < 50:
        prompt = kept_tokens([*PROMPT, *expected], 24)
        expected += expected_tokens(prompt, min(24 - len(prompt), 50 - len(expected)))
    assert tokens == expected
    assert max(limits) == 24
    assert source.shifts == len(limits) - 1 > 2


def test_a_part_after_a_shift_knows_how_much_of_its_prompt_is_no_answer() -> None:
    """Penalties count the answer, also the part of it that the new prompt begins with."""
    front = FakeFront()
    told: list[int] = []

    def part(index: int, max_tokens: int, num_prompt: int) -> TokenSource:
        told.append(num_prompt)
        return generation([FakeTransport()], front=front)

    source = ShiftingGeneration(
        generation_of=part, front=front, capacity=24, policy=Shift(), max_new_tokens=50
    )
    tokens = [token.token_id for token in source.tokens(PROMPT, lambda step: None)]
    expected, num_new = [], 0
    while num_new < 50:
        kept = Shift().kept(len(PROMPT) + num_new, 24)
        expected.append(len([position for position in kept if position < len(PROMPT)]))
        num_new += min(24 - len(kept), 50 - num_new)
    assert told == expected
    assert told[0] == len(PROMPT) > told[-1]
    assert len(tokens) == 50


def test_nothing_shifts_while_the_answer_fits() -> None:
    source, limits = shifting(capacity=100, count=20)
    tokens = [token.token_id for token in islice(source.tokens(PROMPT, lambda step: None), 30)]
    assert tokens == expected_tokens(PROMPT, 20)
    assert (source.shifts, limits) == (0, [30])


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InputError, match="refuse, shift"):
        CompletionRequest(context="slide")


def test_cancelling_while_a_part_is_being_made_ends_it_before_its_first_token() -> None:
    def part(index: int, max_tokens: int, num_prompt: int) -> TokenSource:
        source.cancel()
        return generation([FakeTransport()])

    source = ShiftingGeneration(
        generation_of=part, front=FakeFront(), capacity=100, policy=Shift(), max_new_tokens=20
    )
    assert list(source.tokens(PROMPT, lambda step: None)) == []
