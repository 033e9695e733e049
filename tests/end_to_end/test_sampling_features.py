"""Penalties, bias, grammars and log-probabilities across a real server: split, drafted, resumed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from decoding.grammar import Grammar
from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.errors import InputError, RefusedError
from edge.generation.completion import CompletionRequest
from edge.generation.report import Completion
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer, running_server
from tests.tiny_models import VOCAB, byte_ids

PROMPT = "one two three, one two three, one two"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
JSON_SCHEMA = Grammar(kind="json_schema", text=json.dumps(SCHEMA))
NO_SPACE = dict.fromkeys(byte_ids(" \t\n\r"), -100.0)
FEATURES = {
    "frequency": SamplingParams(frequency_penalty=1.5),
    "presence": SamplingParams(presence_penalty=-1.5, temperature=0.8, seed=4),
    "bias": SamplingParams(logit_bias={byte_ids("x")[0]: 3.0, 9: -100.0}, temperature=0.9, seed=5),
    "schema": SamplingParams(grammar=JSON_SCHEMA, logit_bias=NO_SPACE),
    "schema, sampled": SamplingParams(
        grammar=JSON_SCHEMA, logit_bias=NO_SPACE, temperature=1.0, seed=8
    ),
    "regex": SamplingParams(grammar=Grammar(kind="regex", text="(one |two |three ){4}end")),
    "lark": SamplingParams(grammar=Grammar(kind="lark", text='start: "a" start "b" | "c"')),
    "all": SamplingParams(
        grammar=Grammar(kind="regex", text="[a-z ,]{10,30}"),
        frequency_penalty=1.0,
        presence_penalty=0.5,
        repetition_penalty=1.2,
        temperature=0.7,
        seed=3,
        logprobs=True,
        top_logprobs=5,
    ),
}


@pytest.fixture(scope="module")
def split(bench: ModelBench, server: RunningServer) -> Iterator[EdgeClient]:
    with EdgeClient(bench.edge_bundle(2), server.address, concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def whole(bench: ModelBench) -> Iterator[EdgeClient]:
    """The same model with every layer on the device."""
    with EdgeClient(bench.edge_bundle(bench.num_layers)) as client:
        yield client


def ask(
    client: EdgeClient, sampling: SamplingParams, draft: str = "off", count: int = 60
) -> Completion:
    request = CompletionRequest(max_new_tokens=count, sampling=sampling, draft=draft)
    return client.complete(PROMPT, request)


@pytest.mark.parametrize("name", FEATURES)
def test_a_split_model_answers_like_the_whole_one_on_the_device(
    split: EdgeClient, whole: EdgeClient, name: str
) -> None:
    ours, theirs = ask(split, FEATURES[name]), ask(whole, FEATURES[name])
    assert ours.token_ids == theirs.token_ids
    assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
    assert len(ours.top_logprobs) == len(theirs.top_logprobs)
    for mine, other in zip(ours.top_logprobs, theirs.top_logprobs, strict=True):
        assert [t.token_id for t in mine] == [t.token_id for t in other]


@pytest.mark.parametrize("name", FEATURES)
def test_drafts_change_no_token(split: EdgeClient, name: str) -> None:
    plain = ask(split, FEATURES[name])
    drafted = ask(split, FEATURES[name], draft="ngram")
    assert drafted.token_ids == plain.token_ids
    assert drafted.finish_reason == plain.finish_reason
    assert [t for top in drafted.top_logprobs for t, _ in top] == [
        t for top in plain.top_logprobs for t, _ in top
    ]


@pytest.mark.parametrize("name", ["schema", "schema, sampled"])
def test_a_schema_gives_json_that_holds_to_it_and_ends(split: EdgeClient, name: str) -> None:
    completion = ask(split, FEATURES[name], count=120)
    assert completion.finish_reason == "stop"
    value = json.loads(completion.text)
    assert set(value) == {"name", "age", "tags"}
    assert len(value["name"]) <= 6
    assert 0 <= value["age"] <= 150
    assert set(value["tags"]) <= {"a", "b"}


def test_any_json_object_is_json(split: EdgeClient) -> None:
    grammar = Grammar(kind="json_object")
    ends = {byte_ids("}")[0]: 8.0, **NO_SPACE}
    completion = ask(split, SamplingParams(grammar=grammar, logit_bias=ends), count=120)
    assert isinstance(json.loads(completion.text), dict)


class Interruption:
    """Breaks the stream of a generation, as a link does, after some tokens."""

    def __init__(self, client: EdgeClient, sampling: SamplingParams, draft: str) -> None:
        request = CompletionRequest(max_new_tokens=60, sampling=sampling, draft=draft)
        self.run = client.start(PROMPT, request)

    def completion(self, at: int) -> Completion:
        generation: Any = None
        for index, _ in enumerate(self.run):
            generation = self.run._generation
            if index == at:
                generation._stream.abort()
        assert generation.reconnects == 1
        return self.run.completion


@pytest.mark.parametrize("draft", ["off", "ngram"])
@pytest.mark.parametrize("name", ["schema", "all", "frequency"])
def test_a_broken_stream_changes_no_token(split: EdgeClient, name: str, draft: str) -> None:
    plain = ask(split, FEATURES[name])
    broken = Interruption(split, FEATURES[name], draft).completion(5)
    assert broken.token_ids == plain.token_ids


def test_another_server_that_replays_the_frames_gives_the_same_tokens(
    bench: ModelBench, split: EdgeClient
) -> None:
    """It rebuilds the grammar's state and the counts from the token ids."""
    sampling = replace(FEATURES["all"], prompt_logprobs=2)
    plain = ask(split, sampling)
    with (
        running_server(bench.cloud_bundle()) as first,
        running_server(bench.cloud_bundle()) as second,
        EdgeClient(bench.edge_bundle(2), [first.address, second.address]) as client,
    ):
        run = client.start(PROMPT, CompletionRequest(max_new_tokens=60, sampling=sampling))
        stopping = threading.Thread(target=first.stop)
        for index, _ in enumerate(run):
            generation: Any = run._generation
            if index == 5:
                generation._stream.abort()
                generation._connector._transports = generation._connector._transports[1:]
        stopping.start()
        stopping.join()
        first.stop = lambda: None  # type: ignore[method-assign]
    assert run.completion.token_ids == plain.token_ids
    assert run.completion.reconnects == 1
    assert len(run.completion.prompt_logprobs) == len(plain.prompt_logprobs)


def test_masks_and_penalties_of_one_session_change_no_token_of_others(split: EdgeClient) -> None:
    wishes = [SamplingParams(), FEATURES["schema"], FEATURES["frequency"], SamplingParams(seed=1)]
    alone = [ask(split, wish).token_ids for wish in wishes]
    together: dict[int, tuple[int, ...]] = {}

    def complete(index: int) -> None:
        together[index] = ask(split, wishes[index]).token_ids

    threads = [threading.Thread(target=complete, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(4)] == alone


def reference(bench: ModelBench, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(bench.whole(torch.tensor([ids])).logits[0], dim=-1)


@pytest.mark.parametrize("where", ["split", "whole"])
def test_a_prompts_log_probabilities_are_the_models(
    bench: ModelBench, request: pytest.FixtureRequest, where: str
) -> None:
    """Of each token by the row before it, whatever chunks the prompt came in; asked twice, because
    the second prompt could share the first one's beginning."""
    client: EdgeClient = request.getfixturevalue(where)
    ids = client.tokenizer.encode(PROMPT * 2)
    expected = reference(bench, ids)
    for _ in range(2):
        sampling = SamplingParams(prompt_logprobs=3, logprobs=True)
        run = client.start_ids(ids, CompletionRequest(max_new_tokens=2, sampling=sampling))
        next(iter(run))
        scores = run.prompt_logprobs
        assert scores[0] is None
        assert [score.token_id for score in scores[1:] if score] == ids[1:]
        for position, score in enumerate(scores[1:], start=1):
            assert score is not None
            row = expected[position - 1]
            assert score.logprob == pytest.approx(float(row[ids[position]]), abs=1e-3)
            best = torch.topk(row, 3)
            assert [top.logprob for top in score.top] == pytest.approx(
                best.values.tolist(), abs=1e-3
            )


def test_a_prompt_of_one_token_has_no_log_probability(split: EdgeClient) -> None:
    request = CompletionRequest(max_new_tokens=1, sampling=SamplingParams(prompt_logprobs=0))
    run = split.start_ids([5], request)
    list(run)
    assert len(run.completion.token_ids) == 1
    assert run.completion.prompt_logprobs == ()


def test_a_grammar_that_cannot_be_read_is_refused_before_the_first_token(
    split: EdgeClient, whole: EdgeClient
) -> None:
    bad = SamplingParams(grammar=Grammar(kind="regex", text="((("))
    with pytest.raises(RefusedError, match="the regex does not work"):
        ask(split, bad)
    with pytest.raises(InputError, match="the regex does not work"):
        ask(whole, bad)
    assert ask(split, SamplingParams()).token_ids


def test_a_hostile_grammar_ends_its_own_answer_and_no_other(split: EdgeClient) -> None:
    text = 'start: s\ns: s s | s s s | "a" | "a" "a" | '
    only_a = {byte_ids("a")[0]: 100.0}
    hostile = SamplingParams(grammar=Grammar(kind="lark", text=text), logit_bias=only_a)
    alone = ask(split, SamplingParams()).token_ids
    ends: list[str] = []

    def attack() -> None:
        ends.append(ask(split, hostile, count=150).finish_detail)

    attacker = threading.Thread(target=attack)
    attacker.start()
    assert ask(split, SamplingParams()).token_ids == alone
    attacker.join()
    assert ends == [""] or "takes too long" in ends[0]


def test_a_token_beyond_the_vocabulary_has_no_bias(split: EdgeClient) -> None:
    with pytest.raises(InputError, match=f"the model's tokens end at {VOCAB - 1}"):
        ask(split, SamplingParams(logit_bias={VOCAB: 1.0}))


def test_an_answer_that_may_outgrow_the_plan_follows_no_grammar(split: EdgeClient) -> None:
    request = CompletionRequest(
        max_new_tokens=400, context="shift", sampling=SamplingParams(grammar=JSON_SCHEMA)
    )
    with pytest.raises(InputError, match="ask for fewer new tokens"):
        split.complete(PROMPT, request)
