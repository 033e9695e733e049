"""Where a prompt's rows are computed changes no token; nor does a split that moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from decoding.grammar import Grammar
from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.device.front import FrontEngine
from edge.generation.completion import CompletionRequest, CompletionRun
from edge.generation.prefill_planner import PrefillPlanner
from tests.conftest import ModelBench
from tests.end_to_end.greedy import first_difference, generate
from tests.end_to_end.servers import running_server
from tests.waiting import comes_true

# A tied head, an untied one, scaled embeddings, multipliers.
FAMILIES = ("llama", "qwen3", "gemma3", "granite", "phi3")
PROMPT = [int(token) for token in np.random.default_rng(4).integers(4, 250, size=53)]
COUNT = 20


def answered(client: EdgeClient, prompt: list[int], **changes: Any) -> CompletionRun:
    """A run to COUNT tokens, past any end-of-text token."""
    client._settings = type(client._settings)(stop_token_ids=())
    run = client.start_ids(prompt, CompletionRequest(max_new_tokens=COUNT, **changes))
    for _ in run:
        pass
    return run


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("draft", ["off", "ngram"])
def test_a_prompt_prefilled_in_the_cloud_gives_the_whole_models_tokens_at_every_split(
    tiny: Any, architecture: str, draft: str
) -> None:
    bench: ModelBench = tiny(architecture)
    whole = generate(bench.whole, PROMPT, COUNT)
    with running_server(bench.cloud_bundle()) as server:
        for split in range(bench.num_layers):
            with EdgeClient(bench.edge_bundle(split), server.address) as client:
                run = answered(client, PROMPT, prefill="cloud", draft=draft)
            tokens = run.completion.token_ids
            assert first_difference(bench.whole, PROMPT, tokens, whole) is None, f"split {split}"
            prefill = [step for step in run.completion.steps if step.phase == "prefill"]
            assert [step.hidden_bytes for step in prefill] == [0]
            assert sum(step.uplink_bytes for step in prefill) < 8 * len(PROMPT)
        assert server.server.pool.used_bytes == 0


@pytest.mark.parametrize("num_ids", [1, 16, 37, 51, 53])
def test_a_prompt_that_goes_partly_as_ids_gives_the_whole_models_tokens(
    tiny: Any, num_ids: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench: ModelBench = tiny("llama")
    monkeypatch.setattr(PrefillPlanner, "num_ids", lambda *_: num_ids)
    whole = generate(bench.whole, PROMPT, COUNT)
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(2), server.address) as client,
    ):
        completion = answered(client, PROMPT, prefill="both").completion
        assert first_difference(bench.whole, PROMPT, completion.token_ids, whole) is None
        as_ids = [step.num_rows for step in completion.steps if not step.hidden_bytes]
        assert sum(as_ids) == num_ids


def test_the_place_is_the_plans_unless_the_request_names_another(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(2, prefill="cloud"), server.address) as client,
    ):
        planned = answered(client, PROMPT).completion.to_json()
        asked = answered(client, PROMPT, prefill="edge").completion.to_json()
    assert (planned["prompt_ids"], asked["prompt_ids"]) == (len(PROMPT), 0)
    assert len(PROMPT) < planned["id_bytes"] < 3 * len(PROMPT)
    assert asked["id_bytes"] == 0


def test_at_split_0_no_row_is_ever_sent(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(0), server.address) as client,
    ):
        completion = answered(client, PROMPT).completion
    whole = generate(bench.whole, PROMPT, COUNT)
    assert first_difference(bench.whole, PROMPT, completion.token_ids, whole) is None
    assert all(step.hidden_bytes == 0 and step.level == "ids" for step in completion.steps)


def test_a_server_without_room_for_the_layers_below_gets_rows(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    split = 2
    with running_server(bench.cloud_bundle()) as server:
        pool = server.server.pool
        total = len(PROMPT) + COUNT
        needed = pool.shape.num_bytes(split=split, max_tokens=total)
        free = pool.limit_bytes // pool.shape.block_bytes
        rest = free - needed // pool.shape.block_bytes
        with (
            pool.lease(split=pool.shape.num_layers - 1, max_tokens=16 * rest),
            EdgeClient(bench.edge_bundle(split), server.address) as client,
        ):
            completion = answered(client, PROMPT, prefill="cloud").completion
    whole = generate(bench.whole, PROMPT, COUNT)
    assert first_difference(bench.whole, PROMPT, completion.token_ids, whole) is None
    assert all(step.hidden_bytes for step in completion.steps)


def test_a_second_turn_reuses_what_came_as_ids(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    longer = [*PROMPT, *PROMPT[:20]]
    whole = generate(bench.whole, longer, COUNT)
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(1), server.address) as client,
    ):
        answered(client, PROMPT, prefill="cloud")
        completion = answered(client, longer, prefill="cloud").completion
    assert first_difference(bench.whole, longer, completion.token_ids, whole) is None


@pytest.mark.parametrize("draft", ["off", "ngram"])
def test_a_second_turn_computes_only_what_is_new_and_gives_the_same_tokens(
    tiny: Any, draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench: ModelBench = tiny("llama")
    longer = [*PROMPT, *PROMPT[:20]]
    bundle = bench.edge_bundle(2, prefill_chunk=16)
    rows: list[int] = []
    forward = FrontEngine.forward

    def counted(front: FrontEngine, token_ids: Any) -> Any:
        rows.append(len(token_ids))
        return forward(front, token_ids)

    monkeypatch.setattr(FrontEngine, "forward", counted)
    with running_server(bench.cloud_bundle()) as server:
        with EdgeClient(bundle, server.address, prefill_chunk=16) as client:
            fresh = answered(client, longer, draft=draft).completion
        with EdgeClient(bundle, server.address, prefill_chunk=16) as client:
            answered(client, PROMPT, draft=draft)
            rows.clear()
            second = answered(client, longer, draft=draft).completion
    assert second.token_ids == fresh.token_ids
    whole = generate(bench.whole, longer, COUNT)
    assert first_difference(bench.whole, longer, second.token_ids, whole) is None
    # Three chunks of the first prompt are in the front's cache and in the cloud.
    assert [count for count in rows if count > 1] == [16, 9]


def test_a_short_known_beginning_does_not_keep_a_long_prompt_from_going_as_ids(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    whole = generate(bench.whole, PROMPT, COUNT)
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(1, prefill_chunk=16), server.address) as client,
    ):
        answered(client, PROMPT[:20], prefill="edge")  # one chunk of 16 is kept
        completion = answered(client, PROMPT, prefill="cloud").completion
    assert first_difference(bench.whole, PROMPT, completion.token_ids, whole) is None
    prefill = [step for step in completion.steps if step.phase == "prefill"]
    assert [(step.num_rows, step.hidden_bytes) for step in prefill] == [(len(PROMPT), 0)]


def test_an_answer_that_outgrows_the_device_goes_on_in_the_cloud(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    count = 100
    whole = generate(bench.whole, PROMPT, count)
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(2, max_tokens=64), server.address) as client,
    ):
        client._settings = type(client._settings)(stop_token_ids=())
        request = CompletionRequest(max_new_tokens=count, context="handover")
        completion = client.start_ids(PROMPT, request)
        for _ in completion:
            pass
        done = completion.completion
        assert first_difference(bench.whole, PROMPT, done.token_ids, whole) is None
        assert (done.moves, len(done.token_ids)) == (1, count)
        assert comes_true(lambda: server.server.pool.used_bytes == 0)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.9, seed=7, repetition_penalty=1.2),
        SamplingParams(temperature=0.7, seed=1, presence_penalty=1.5, frequency_penalty=0.5),
        SamplingParams(grammar=Grammar(kind="regex", text="[a-z ]*")),
    ],
    ids=["sampled", "penalties", "grammar"],
)
def test_an_answer_is_the_same_with_and_without_a_handover(
    tiny: Any, sampling: SamplingParams
) -> None:
    bench: ModelBench = tiny("qwen3")
    request = CompletionRequest(max_new_tokens=80, context="handover", sampling=sampling)
    answers = []
    with running_server(bench.cloud_bundle()) as server:
        for max_tokens in (200, 60, 70, 100):
            bundle = bench.edge_bundle(1, max_tokens=max_tokens)
            with EdgeClient(bundle, server.address) as client:
                client._settings = type(client._settings)(stop_token_ids=())
                run = client.start_ids(PROMPT, request)
                for _ in run:
                    pass
            answers.append((run.completion.moves, run.completion.token_ids))
    assert [moves for moves, _ in answers] == [0, 1, 1, 1]
    assert len({tokens for _, tokens in answers}) == 1


def test_a_prompt_longer_than_the_devices_cache_goes_to_the_cloud_at_once(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    whole = generate(bench.whole, PROMPT, COUNT)
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(2, max_tokens=40), server.address) as client,
    ):
        completion = answered(client, PROMPT, context="handover").completion
    assert first_difference(bench.whole, PROMPT, completion.token_ids, whole) is None
    assert completion.moves == 1


def test_the_server_can_run_every_layer_whatever_the_plans_split(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    whole = generate(bench.whole, PROMPT, COUNT)
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(2), server.address) as client,
    ):
        completion = answered(client, PROMPT, prefer="cloud").completion
    assert first_difference(bench.whole, PROMPT, completion.token_ids, whole) is None
    assert {step.level for step in completion.steps} == {"ids"}
