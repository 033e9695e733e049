"""Tokens that leave the caches of an answer, over fakes: at random, with drafts, on a bad link."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from edge.draft.ngram import NgramDrafter
from edge.errors import RefusedError, TransportError
from edge.generation.drafting import DraftSelector
from edge.generation.evicting import EvictingGeneration
from edge.generation.leaving import Leaving
from edge.generation.room import RoomMaker
from optimizer.policy.kv.base import KvPolicy
from optimizer.policy.kv.entropy import Entropy
from optimizer.policy.kv.recent import Recent
from optimizer.policy.retry import RetryPolicy
from protos.entropy_bytes import entropies
from tests.edge.fakes import (
    VOCAB,
    FakeFront,
    FakeTransport,
    expected_tokens,
    next_hash,
    random_faults,
    surprise_of,
)
from tests.edge.generation.remote import generation

COUNT = 60
PATIENT = RetryPolicy(recover_s=1e6, connect_s=1e6)
POLICIES: tuple[KvPolicy, ...] = (Recent(), Entropy(decay=0.9), Entropy(room_share=3))


def cached_at_the_end(
    prompt: list[int], policy: KvPolicy, capacity: int, count: int
) -> tuple[list[int], int]:
    """Hashes of what is cached before the last token of the answer came, and how many rounds that
    took: nothing of the code under test."""
    tokens = [*prompt, *expected_tokens(prompt, count)]
    state, hashes, cached, scores, rounds = 0, [], list[int](), list[float](), 0
    for position, token in enumerate(tokens[:-1]):
        if len(cached) == capacity:
            kept = policy.kept(capacity, capacity, scores if policy.needs_scores else ())
            cached = [cached[place] for place in kept]
            scores = [scores[place] * policy.decay for place in kept]
            rounds += 1
        surprise = entropies(bytes([surprise_of(state, token)])) if position else (0.0,)
        state = next_hash(state, token)
        hashes.append(state)
        cached.append(position)
        scores += surprise
    return [hashes[position] for position in cached], rounds


class Case:
    """A random prompt, cache, link, and whether drafts are made."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        period = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 4))]
        self.prompt = [*period * 3, *(rng.randrange(VOCAB) for _ in range(rng.randint(1, 40)))]
        self.policy = POLICIES[seed % len(POLICIES)]
        self.capacity = rng.randint(16, 40)
        rate = rng.choice((0.0, 0.005, 0.01))  # a replay has some hundred answers
        self.transport = FakeTransport(
            fault=random_faults(seed, rate) if rate else nothing,
            quiet_polls=rng.choice((0, 1, 3, 100)),
        )
        self.front = FakeFront()
        self.drafting = None
        if rng.random() < 0.5:
            self.drafting = DraftSelector(NgramDrafter(), clock=lambda: 0.0)

    def run(self) -> EvictingGeneration:
        room = RoomMaker(self.policy, capacity=self.capacity, front=self.front)
        leaving = Leaving(room, len(self.prompt) + COUNT, self.policy.needs_scores)
        part = generation(
            [self.transport],
            retry_policy=PATIENT,
            front=self.front,
            drafting=self.drafting,
            max_tokens=self.capacity,
            leaving=leaving,
            num_prompt=len(self.prompt),
        )
        return EvictingGeneration(part, room, max_new_tokens=COUNT)


def nothing() -> TransportError | None:
    return None


@pytest.mark.parametrize("seed", range(120))
def test_both_caches_hold_what_the_policy_keeps(seed: int) -> None:
    case = Case(seed)
    run = case.run()
    tokens = [token.token_id for token in islice(run.tokens(case.prompt, lambda step: None), COUNT)]
    assert tokens == expected_tokens(case.prompt, COUNT)
    cached, rounds = cached_at_the_end(case.prompt, case.policy, case.capacity, COUNT)
    assert (case.transport.clouds[-1].rows[: len(cached)], run.shifts) == (cached, rounds)
    assert case.front.cache[: len(cached)] == cached
    most = max(len(cloud.rows) for cloud in case.transport.clouds)
    assert max(most, case.front.num_tokens) <= case.capacity


def test_a_server_that_lets_none_leave_is_refused_in_one_line() -> None:
    case = Case(1)
    case.transport = FakeTransport(lets_leave=False)
    with pytest.raises(RefusedError, match="lets no tokens leave its cache"):
        list(case.run().tokens(case.prompt, lambda step: None))
    assert all(not stream.sent for stream in case.transport.streams)


def test_nothing_is_named_that_other_sessions_could_share() -> None:
    case = Case(0)
    list(islice(case.run().tokens(case.prompt, lambda step: None), COUNT))
    for request in case.transport.requests:
        assert (request.prefix_hashes, request.shareable_tokens, request.draft_ids) == ((), 0, 0)


def test_decay_makes_older_surprises_count_less() -> None:
    """Half of 16 stay: a sink, the newest, and six between, which are the surprising ones."""
    scores = [0.0, *[4.0] * 7, *[3.0] * 8]
    for decay, stays in ((1.0, True), (0.5, False)):
        policy = Entropy(decay=decay, sink_tokens=1, recent_share=8, room_share=2)
        kept = policy.kept(16, 16, scores)
        assert kept == [0, 2, 3, 4, 5, 6, 7, 15]
        aged = [scores[place] * decay for place in kept]
        again = policy.kept(16, 16, [*aged, *[3.0] * 8])
        assert (list(again[1:7]) == list(range(1, 7))) == stays
