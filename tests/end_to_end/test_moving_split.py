"""A split that moves between segments of the front changes no token: real fronts, real servers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from decoding.grammar import Grammar
from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.errors import InputError
from edge.generation.completion import CompletionRequest, CompletionRun
from edge.generation.report import Completion
from optimizer.policy.move_transport import KV_LEVEL_OF
from optimizer.policy.split_moves import Signs
from tests.conftest import ModelBench
from tests.end_to_end.greedy import first_difference, generate
from tests.end_to_end.servers import running_server
from tests.waiting import comes_true

PROMPT = [int(token) for token in np.random.default_rng(4).integers(4, 250, size=53)]
COUNT = 60
SPLITS = (1, 2, 3)


def client_of(bench: ModelBench, address: str, **changes: Any) -> EdgeClient:
    bundle = bench.edge_bundle(SPLITS[-1], front_splits=SPLITS, **changes)
    client = EdgeClient(bundle, address)
    client._settings = type(client._settings)(stop_token_ids=())
    return client


def answered(client: EdgeClient, **changes: Any) -> Completion:
    """An answer of COUNT tokens."""
    run = client.start_ids(PROMPT, CompletionRequest(max_new_tokens=COUNT, **changes))
    for _ in run:
        pass
    return run.completion


def moved(client: EdgeClient, rng: random.Random, **changes: Any) -> CompletionRun:
    """A run of COUNT tokens whose split moves at random."""
    run = client.start_ids(PROMPT, CompletionRequest(max_new_tokens=COUNT, **changes))
    for _ in run:
        if rng.random() < 0.15:
            run.move_to(rng.choice((0, *SPLITS)))
    return run


@pytest.mark.parametrize(
    ("architecture", "move_by"),
    [(name, "ids") for name in ("llama", "qwen3", "gemma3", "granite")]
    + [(name, "kv") for name in ("llama", "gemma3", "granite", "glm")],
)
@pytest.mark.parametrize("draft", ["off", "ngram"])
def test_an_answer_with_moves_is_the_whole_models(
    tiny: Any, architecture: str, draft: str, move_by: str
) -> None:
    bench: ModelBench = tiny(architecture)
    whole = generate(bench.whole, PROMPT, COUNT)
    rng = random.Random(7)
    moves = 0
    with running_server(bench.cloud_bundle()) as server:
        with client_of(bench, server.address) as client:
            for _ in range(3):
                done = moved(client, rng, draft=draft, move_by=move_by).completion
                assert first_difference(bench.whole, PROMPT, done.token_ids, whole) is None
                moves += done.moves
                for move in done.to_json()["moves"]:
                    is_down = move["to"] < move["from"]
                    assert move["by"] == (move_by if is_down else "ids")
        assert comes_true(lambda: server.server.pool.num_leases == 0)
        assert server.server.pool.used_bytes == 0
    assert moves > 6


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.9, seed=7, repetition_penalty=1.2),
        SamplingParams(grammar=Grammar(kind="regex", text="[a-z ]*")),
    ],
    ids=["sampled", "grammar"],
)
def test_what_is_drawn_and_what_a_grammar_allows_stays_the_same(
    tiny: Any, sampling: SamplingParams
) -> None:
    bench: ModelBench = tiny("llama")
    with running_server(bench.cloud_bundle()) as server:
        with EdgeClient(bench.edge_bundle(3), server.address) as still:
            still._settings = type(still._settings)(stop_token_ids=())
            run = still.start_ids(
                PROMPT, CompletionRequest(max_new_tokens=COUNT, sampling=sampling)
            )
            for _ in run:
                pass
        with client_of(bench, server.address) as client:
            done = moved(client, random.Random(3), sampling=sampling).completion
    assert done.moves > 1
    assert done.token_ids == run.completion.token_ids


def test_the_prompts_scores_come_once_whatever_moves(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    sampling = SamplingParams(logprobs=True, prompt_logprobs=2)
    with running_server(bench.cloud_bundle()) as server:
        with EdgeClient(bench.edge_bundle(3), server.address) as still:
            expected = answered(still, sampling=sampling, ignore_eos=True)
        with client_of(bench, server.address) as client:
            done = moved(client, random.Random(5), sampling=sampling).completion
            at_two = answered(client, sampling=sampling, split=2)
    assert done.moves > 1
    for found in (done, at_two):
        assert found.token_ids == expected.token_ids
        scores = [entry.logprob for entry in found.prompt_logprobs[1:] if entry is not None]
        wanted = [entry.logprob for entry in expected.prompt_logprobs[1:] if entry is not None]
        assert scores == pytest.approx(wanted, abs=1e-4)
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


@pytest.mark.parametrize("move_by", ["ids", "kv"])
def test_a_long_answer_walks_down_the_splits_within_the_same_cache(tiny: Any, move_by: str) -> None:
    """A cache of 64 tokens at split 3 holds 96 at split 2 and 192 at split 1."""
    bench: ModelBench = tiny("llama")
    count = 200
    whole = generate(bench.whole, PROMPT, count)
    plan = {"max_tokens": 64, "front_splits": SPLITS}
    with (
        running_server(bench.cloud_bundle(SPLITS[-1], **plan)) as server,
        client_of(bench, server.address, max_tokens=64) as client,
    ):
        (front,) = (client._fronts.get(),)
        client._fronts.put(front)
        planned = front.kv_bytes
        request = CompletionRequest(max_new_tokens=count, context="handover", move_by=move_by)
        run = client.start_ids(PROMPT, request)
        splits = []
        for _ in run:
            splits.append(front.split)
            assert front.kv_bytes <= planned
        done = run.completion
        assert first_difference(bench.whole, PROMPT, done.token_ids, whole) is None
        assert done.moves == 3
        moves = done.to_json()["moves"]
        assert [(move["at_token"], move["from"], move["to"]) for move in moves] == [
            (64 - len(PROMPT), 3, 2),
            (96 - len(PROMPT), 2, 1),
            (192 - len(PROMPT), 1, 0),
        ]
        assert [move["by"] for move in moves] == [move_by] * 3
        # Token ids of all that came before: a few bytes each. A layer's keys and values: 256.
        each_bytes = [move["uplink_bytes"] / (len(PROMPT) + move["at_token"]) for move in moves]
        assert all(each < 8 if move_by == "ids" else 150 < each < 256 for each in each_bytes)
        assert list(dict.fromkeys(splits)) == [3, 2, 1]
        # The next answer begins at the plan's split again.
        again = client.start_ids(PROMPT, CompletionRequest(max_new_tokens=5))
        for _ in again:
            pass
        assert front.split == 3
        assert again.completion.token_ids == tuple(whole[:5])


def test_a_lossy_level_of_keys_and_values_takes_fewer_bytes_for_the_same_answer(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 8 bits the tiny model's tokens stay; what real text loses is in docs/results."""
    bench: ModelBench = tiny("llama")
    whole = generate(bench.whole, PROMPT, COUNT)
    sizes = {}
    with (
        running_server(bench.cloud_bundle()) as server,
        client_of(bench, server.address) as client,
    ):
        for level in ("lossless", "kv8"):
            monkeypatch.setitem(KV_LEVEL_OF, True, level)
            run = client.start_ids(PROMPT, CompletionRequest(max_new_tokens=COUNT, move_by="kv"))
            for index, _ in enumerate(run):
                if index == 30:
                    run.move_to(1)
            done = run.completion
            (move,) = done.to_json()["moves"]
            assert done.to_json()["level_counts"][f"kv:{level}"] == 1
            assert list(done.token_ids[:31]) == whole[:31]
            sizes[level] = move["uplink_bytes"]
        assert first_difference(bench.whole, PROMPT, done.token_ids[:40], whole[:40]) is None
        assert comes_true(lambda: server.server.pool.num_leases == 0)
    assert sizes["kv8"] < 0.6 * sizes["lossless"]


def test_an_answer_of_a_front_in_one_piece_does_not_move(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(2), server.address) as client,
    ):
        run = client.start_ids(PROMPT, CompletionRequest(max_new_tokens=3))
        for _ in run:
            with pytest.raises(InputError, match="cannot move: build with --splits"):
                run.move_to(1)


def test_a_device_that_runs_short_gives_its_layers_to_the_cloud(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench: ModelBench = tiny("llama")
    whole = generate(bench.whole, PROMPT, COUNT)
    signs = Signs(free_memory=0.5)
    monkeypatch.setattr("edge.generation.split_watch.LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("optimizer.policy.split_moves.DOWN_AFTER_S", 0.0)
    with (
        running_server(bench.cloud_bundle()) as server,
        client_of(bench, server.address) as client,
    ):
        front = client._fronts.get()
        client._fronts.put(front)
        watch: Any = client._generations._wish
        watch._signs = lambda: signs
        run = client.start_ids(PROMPT, CompletionRequest(max_new_tokens=COUNT))
        bytes_before = front.kv_bytes
        for index, _ in enumerate(run):
            if index == 20:
                signs = Signs(free_memory=0.01)
        assert first_difference(bench.whole, PROMPT, run.completion.token_ids, whole) is None
        assert run.completion.moves >= 2
        assert run.completion.answered_by == "cloud"
        assert bytes_before > front.kv_bytes == 0


@pytest.mark.parametrize("split", [0, 1, 2])
def test_an_answer_may_begin_at_any_of_the_splits(tiny: Any, split: int) -> None:
    bench: ModelBench = tiny("llama")
    whole = generate(bench.whole, PROMPT, COUNT)
    with (
        running_server(bench.cloud_bundle()) as server,
        client_of(bench, server.address) as client,
    ):
        front = client._fronts.get()
        client._fronts.put(front)
        done = answered(client, split=split)
        assert (front.split, done.moves) == (split, 0)
    assert first_difference(bench.whole, PROMPT, done.token_ids, whole) is None


def test_a_split_that_the_front_is_not_cut_at_is_refused(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    with (
        client_of(bench, "127.0.0.1:9") as client,
        pytest.raises(InputError, match="split 4: this front runs 0, 1, 2, 3"),
    ):
        client.check(CompletionRequest(split=4))


def test_a_server_that_refuses_a_split_is_asked_at_another_one(tiny: Any) -> None:
    """Built without segments, it takes no more than 64 tokens but at split 0."""
    bench: ModelBench = tiny("llama")
    whole = generate(bench.whole, PROMPT, COUNT)
    with (
        running_server(bench.cloud_bundle(SPLITS[-1], max_tokens=64)) as server,
        client_of(bench, server.address, max_tokens=64) as client,
    ):
        done = answered(client, context="handover")
    assert first_difference(bench.whole, PROMPT, done.token_ids, whole) is None
    assert (done.finish_reason, done.moves, done.answered_by) == ("length", 1, "cloud")
    assert "no move to split 1: 113 tokens: a session may have 64" in done.finish_detail


def test_a_server_without_the_layers_keeps_the_answer_where_it_is(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    whole = generate(bench.whole, PROMPT, COUNT)
    with (
        running_server(bench.cloud_bundle(3, back_start=3)) as server,
        client_of(bench, server.address) as client,
    ):
        run = client.start_ids(PROMPT, CompletionRequest(max_new_tokens=COUNT))
        for index, _ in enumerate(run):
            if index == 5:
                run.move_to(1)
        done = run.completion
    assert first_difference(bench.whole, PROMPT, done.token_ids, whole) is None
    assert (done.finish_reason, done.moves) == ("length", 0)
    assert "no move to split 1: split 1: this server runs splits 3 to 3" in done.finish_detail


def test_an_answer_that_shifts_runs_at_the_split_that_was_asked_for(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    request = CompletionRequest(max_new_tokens=200, split=1, context="shift")
    with (
        running_server(bench.cloud_bundle()) as server,
        client_of(bench, server.address) as client,
    ):
        run = client.start_ids(PROMPT, request)
        with pytest.raises(InputError, match="has not begun"):
            run.move_to(2)
        for _ in run:
            with pytest.raises(InputError, match="cannot move: build with --splits, and ask for"):
                run.move_to(2)
        assert {step.split for step in run.completion.steps} == {1}
        assert client._fronts.get().split == 1


def test_with_a_fallback_the_split_moves_as_without(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    bundle = bench.edge_bundle(SPLITS[-1], front_splits=SPLITS)
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bundle, server.address, fallback=bench.edge_bundle(4)) as client,
    ):
        run = client.start_ids(PROMPT, CompletionRequest(max_new_tokens=20, ignore_eos=True))
        for index, _ in enumerate(run):
            if index == 5:
                run.move_to(1)
    assert run.completion.moves == 1


@pytest.mark.parametrize("split", [-1, 1.0, "1", None, 7])
def test_a_move_to_what_is_no_split_is_refused(tiny: Any, split: Any) -> None:
    bench: ModelBench = tiny("llama")
    with (
        running_server(bench.cloud_bundle()) as server,
        client_of(bench, server.address) as client,
    ):
        run = client.start_ids(PROMPT, CompletionRequest(max_new_tokens=3))
        for _ in run:
            with pytest.raises(InputError, match="split"):
                run.move_to(split)
    assert run.completion.moves == 0


@pytest.mark.parametrize("prefer", ["cloud", "edge"])
def test_a_split_beside_another_preference_is_refused(prefer: str) -> None:
    with pytest.raises(InputError, match=f"split 2 and prefer {prefer}: give one of them"):
        CompletionRequest(split=2, prefer=prefer)


def test_a_front_in_one_piece_stays_where_it_is_however_short_the_device_is(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench: ModelBench = tiny("llama")
    with (
        running_server(bench.cloud_bundle()) as server,
        EdgeClient(bench.edge_bundle(2, max_tokens=80), server.address) as client,
    ):
        monkeypatch.setattr("edge.device.signs.available_memory_bytes", lambda: 1)
        done = answered(client, context="handover", ignore_eos=True)
        front = client._fronts.get()
        assert (done.moves, [move["to"] for move in done.to_json()["moves"]]) == (1, [0])
        assert (front.split, len(PROMPT) + done.to_json()["moves"][0]["at_token"]) == (2, 80)
