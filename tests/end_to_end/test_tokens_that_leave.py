"""Tokens leave both caches: the split says what the whole model says under the same mask."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from decoding.params import SamplingParams
from decoding.sampler import sample, score
from edge.client import EdgeClient
from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from edge.generation.report import Completion
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from optimizer.policy.kv.registry import kv_policy
from optimizer.policy.retry import RetryPolicy
from protos.entropy_bytes import entropies, entropy_bytes
from tests.conftest import ModelBench
from tests.end_to_end.servers import running_server
from tests.kept_reference import KeptReference
from tests.waiting import comes_true

PROMPT = [int(token) for token in np.random.default_rng(4).integers(4, 250, size=53)]
COUNT, CAPACITY = 70, 32
POSITIONS = 200
PATIENT = RetryPolicy(connect_s=30, step_s=5, recover_s=60)
IMPATIENT = RetryPolicy(connect_s=10, step_s=0.5, recover_s=30)
FAST_LINK = LinkShape.fixed(rtt_s=0.004, up_bytes_per_s=2.5e6, down_bytes_per_s=2.5e6)


def client_of(bench: ModelBench, address: str | list[str], **changes: Any) -> EdgeClient:
    plan = {"max_tokens": CAPACITY, "max_positions": POSITIONS} | changes
    policy = PATIENT if isinstance(address, str) else IMPATIENT
    client = EdgeClient(bench.edge_bundle(2, **plan), address, retry_policy=policy)
    client._settings = type(client._settings)(stop_token_ids=())
    return client


def answered(client: EdgeClient, context: str, **changes: Any) -> Completion:
    run = client.start_ids(
        PROMPT, CompletionRequest(max_new_tokens=COUNT, context=context, **changes)
    )
    for _ in run:
        pass
    return run.completion


def masked_answer(
    model: Any, context: str, sampling: SamplingParams, capacity: int = CAPACITY
) -> list[int]:
    """What the whole model says, each row under the mask of what was cached when it came."""
    reference = KeptReference(model, kv_policy(context), capacity)
    answer: list[int] = []
    # A token's surprise comes from the row before it, so rows are added one by one.
    surprise = 0.0
    for token in PROMPT:
        reference.extend([token], [surprise])
        row = reference.run().logits[0, -1].numpy()
        if len(reference.tokens) < len(PROMPT):
            following = PROMPT[len(reference.tokens)]
            (surprise,) = entropies(entropy_bytes([score(row, following).logprob]))
    for _ in range(COUNT):
        token = sample(row, sampling, position=len(reference.tokens)).token_id
        answer.append(token)
        (surprise,) = entropies(entropy_bytes([score(row, token).logprob]))
        reference.extend([token], [surprise])
        row = reference.run().logits[0, -1].numpy()
    assert reference.rounds > 10
    return answer


@pytest.fixture(scope="module", params=["recent", "entropy"])
def context(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def expected(tiny: Any, context: str) -> list[int]:
    return masked_answer(tiny("llama").whole, context, SamplingParams())


@pytest.mark.parametrize("draft", ["off", "ngram"])
def test_the_split_equals_the_masked_model(
    tiny: Any, context: str, expected: list[int], draft: str
) -> None:
    bench: ModelBench = tiny("llama")
    with running_server(bench.cloud_bundle()) as server:
        with client_of(bench, server.address) as client:
            (front,) = (client._fronts.get(),)
            client._fronts.put(front)
            planned = front.kv_bytes
            done = answered(client, context, draft=draft)
            assert front.kv_bytes == planned
            assert front.num_tokens <= CAPACITY
        assert comes_true(lambda: server.server.pool.used_bytes == 0)
    assert list(done.token_ids) == expected
    assert done.shifts > 10


def test_a_draw_with_temperature_depends_on_the_true_position(tiny: Any, context: str) -> None:
    bench: ModelBench = tiny("llama")
    sampling = SamplingParams(temperature=0.9, seed=7)
    expected = masked_answer(bench.whole, context, sampling)
    with running_server(bench.cloud_bundle()) as server, client_of(bench, server.address) as client:
        assert list(answered(client, context, sampling=sampling).token_ids) == expected


@pytest.mark.parametrize("draft", ["off", "ngram"])
def test_cut_connections_change_no_token(
    tiny: Any, context: str, expected: list[int], draft: str
) -> None:
    """The server still holds the session, and goes on."""
    bench: ModelBench = tiny("llama")
    rng = random.Random(5)
    with (
        running_server(bench.cloud_bundle()) as server,
        EmulatedLink(target=("127.0.0.1", server.server.port), shape=FAST_LINK) as link,
        client_of(bench, f"127.0.0.1:{link.address[1]}") as client,
    ):
        request = CompletionRequest(max_new_tokens=COUNT, context=context, draft=draft)
        run = client.start_ids(PROMPT, request)
        for _ in run:
            if rng.random() < 0.1:
                link.drop_connections()
    assert run.completion.reconnects > 2
    assert list(run.completion.token_ids) == expected


@pytest.mark.parametrize("draft", ["off", "ngram"])
def test_another_server_gets_the_same_state_from_the_journal(
    tiny: Any, context: str, expected: list[int], draft: str
) -> None:
    """The first path stops: frames, and what left before each, are replayed to the next server."""
    bench: ModelBench = tiny("llama")
    with (
        running_server(bench.cloud_bundle()) as first,
        running_server(bench.cloud_bundle()) as second,
        EmulatedLink(target=("127.0.0.1", first.server.port), shape=FAST_LINK) as link,
    ):
        both = [f"127.0.0.1:{link.address[1]}", second.address]
        with client_of(bench, both) as client:
            request = CompletionRequest(max_new_tokens=COUNT, context=context, draft=draft)
            run = client.start_ids(PROMPT, request)
            for index, _ in enumerate(run):
                if index == 40:
                    link.pause()
    assert run.completion.reconnects >= 1
    assert list(run.completion.token_ids) == expected


def test_a_smaller_budget_is_kept_on_both_sides(tiny: Any, context: str) -> None:
    bench: ModelBench = tiny("llama")
    expected = masked_answer(bench.whole, context, SamplingParams(), capacity=20)
    with (
        running_server(bench.cloud_bundle()) as server,
        client_of(bench, server.address, max_tokens=64) as client,
    ):
        done = answered(client, context, context_tokens=20)
    assert list(done.token_ids) == expected


def test_nothing_changes_while_the_answer_fits(tiny: Any, context: str) -> None:
    bench: ModelBench = tiny("llama")
    with (
        running_server(bench.cloud_bundle()) as server,
        client_of(bench, server.address, max_tokens=150) as client,
    ):
        assert answered(client, context).token_ids == answered(client, "refuse").token_ids


@pytest.mark.parametrize(
    ("name", "max_positions", "reason"),
    [
        ("llama", 0, "again with --positions; or take shift"),
        ("mistral", POSITIONS, "sliding windows; or take shift"),
        ("llama", 100, "at most 47 new ones"),
    ],
)
def test_what_cannot_be_says_what_to_do(
    tiny: Any, name: str, max_positions: int, reason: str
) -> None:
    bench: ModelBench = tiny(name)
    with (
        running_server(bench.cloud_bundle()) as server,
        client_of(bench, server.address, max_positions=max_positions) as client,
        pytest.raises(InputError, match=reason),
    ):
        answered(client, "recent")
