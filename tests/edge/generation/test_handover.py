"""A split that moves to the cloud changes no token: at any moment, with drafts, on a bad link."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from edge.draft.ngram import NgramDrafter
from edge.errors import TransportError
from edge.generation.drafting import DraftSelector
from edge.generation.handover import HandoverGeneration
from edge.generation.loop import RemoteGeneration
from edge.generation.prefill_planner import PrefillChoice, PrefillPlanner
from optimizer.policy.retry import RetryPolicy
from tests.edge.fakes import VOCAB, FakeFront, FakeTransport, expected_tokens, random_faults
from tests.edge.generation.remote import generation

COUNT = 40
PATIENT = RetryPolicy(recover_s=1e6, connect_s=1e6)
ALL = 10_000


class Move:
    """One random case: a prompt, where the split moves, what the link does."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        # A period in the prompt lets the look-up drafter guess.
        period = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 4))]
        self.prompt = [*period * 3, *(rng.randrange(VOCAB) for _ in range(rng.randint(1, 12)))]
        self.capacity = rng.randint(1, len(self.prompt) + COUNT - 1)
        self.drafts = rng.random() < 0.5
        self.planner = PrefillPlanner(split=1, num_layers=4, chunk_tokens=4)
        rate = rng.choice((0.0, 0.03, 0.1))
        fault = random_faults(seed, rate) if rate else self._none
        self.transport = FakeTransport(
            fault=fault, token_rows=ALL, quiet_polls=rng.choice((0, 1, 3, 100))
        )
        self.front = FakeFront()

    @staticmethod
    def _none() -> TransportError | None:
        return None

    def on_device(self, most: int) -> RemoteGeneration:
        """The part with the front."""
        drafting = DraftSelector(NgramDrafter(), clock=lambda: 0.0) if self.drafts else None
        return generation(
            [self.transport],
            retry_policy=PATIENT,
            front=self.front,
            drafting=drafting,
            max_tokens=most,
        )

    def in_cloud(self, most: int) -> RemoteGeneration:
        """The part by token ids."""
        return generation(
            [self.transport],
            retry_policy=PATIENT,
            front=self.front,
            max_tokens=most,
            prefill=PrefillChoice(self.planner, "cloud", split=0),
            split=0,
        )

    def run(self) -> HandoverGeneration:
        """The generation of both parts."""
        return HandoverGeneration(
            on_device=self.on_device,
            in_cloud=self.in_cloud,
            capacity=self.capacity,
            max_new_tokens=COUNT,
        )


@pytest.mark.parametrize("seed", range(200))
def test_a_move_at_any_moment_changes_no_token(seed: int) -> None:
    move = Move(seed)
    run = move.run()
    answer = run.tokens(move.prompt, lambda step: None)
    tokens = [token.token_id for token in islice(answer, COUNT)]
    assert tokens == expected_tokens(move.prompt, COUNT)
    assert run.moves == 1
    splits = [request.split for request in move.transport.requests]
    assert splits == sorted(splits, reverse=True)
    ids = [frame for stream in move.transport.streams for frame in stream.sent if frame.is_tokens]
    assert ids
    begins = len(move.prompt) + max(0, move.capacity - len(move.prompt))
    assert max(frame.first_position + len(frame.token_ids) for frame in ids) >= begins
