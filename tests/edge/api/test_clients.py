"""Common clients run unchanged against the API: tools, JSON schemas, log-probabilities, echo."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pydantic
import pytest

from edge.client import EdgeClient
from tests.edge.api.tool_model import TOOL

MESSAGES: Any = [{"role": "user", "content": "tell me"}]


class Picked(pydantic.BaseModel):
    """What a structured answer holds."""

    color: bool


def test_a_forced_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, tools=[TOOL], tool_choice="required", max_tokens=120, seed=1
    )
    calls: Any = answer.choices[0].message.tool_calls
    (call,) = calls
    assert isinstance(call, openai.types.chat.ChatCompletionMessageFunctionToolCall)
    assert call.function.name == "pick"
    assert json.loads(call.function.arguments)["color"] in ("red", "blue")
    assert answer.choices[0].finish_reason == "tool_calls"
    said: Any = answer.choices[0].message
    again = client.chat.completions.create(
        model="any",
        messages=[
            *MESSAGES,
            said,
            {"role": "tool", "tool_call_id": call.id, "content": "done"},
        ],
        max_tokens=3,
    )
    assert again.usage is not None
    assert again.usage.completion_tokens <= 3


def test_a_stream_brings_the_call_as_a_delta(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="any",
            messages=MESSAGES,
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "pick"}},
            stream=True,
            max_tokens=120,
            seed=1,
        )
    )
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.index for call in calls] == [0]
    assert calls[0].function is not None
    assert calls[0].function.name == "pick"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_an_answer_parses_as_its_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="any", messages=MESSAGES, response_format=Picked, max_tokens=60, seed=2
    )
    assert isinstance(answer.choices[0].message.parsed, Picked)


def test_likely_tokens_stand_beside_the_chosen_ones(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, max_tokens=3, temperature=0, logprobs=True, top_logprobs=5
    )
    assert answer.choices[0].logprobs is not None
    for entry in answer.choices[0].logprobs.content or ():
        assert len(entry.top_logprobs) == 5
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_has_the_prompt_and_its_log_probabilities(
    client: openai.OpenAI, stream: bool
) -> None:
    request: Any = {"model": "any", "prompt": "hello", "echo": True, "logprobs": 2, "seed": 1}
    answer: Any = client.completions.create(**request, max_tokens=2, temperature=0, stream=stream)
    choices = [c for chunk in (answer if stream else [answer]) for c in chunk.choices]
    assert "".join(choice.text for choice in choices).startswith("hello")
    told = [choice.logprobs for choice in choices if choice.logprobs]
    values = [value for part in told for value in part.token_logprobs]
    tops = [top for part in told for top in part.top_logprobs]
    assert values[0] is None
    assert all(value <= 0 for value in values[1:])
    assert len(tops) == len(values) == len([t for part in told for t in part.text_offset])


def test_prompts_and_choices_are_answered_in_order(client: openai.OpenAI) -> None:
    request: Any = {"model": "any", "max_tokens": 3, "temperature": 0}
    both = client.completions.create(**request, prompt=["a", "bcd"], n=2)
    alone = [client.completions.create(**request, prompt=p).choices[0].text for p in ("a", "bcd")]
    assert [c.text for c in both.choices] == [alone[0], alone[0], alone[1], alone[1]]
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert both.usage is not None
    assert both.usage.prompt_tokens == 4


def test_embeddings_are_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="no embeddings"):
        client.embeddings.create(model="any", input="x")


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}},
        {
            "tools": [{**TOOL, "function": {"name": "f", "parameters": {"properties": 5}}}],
            "tool_choice": "required",
        },
        {"logit_bias": {"4000000000": 5}},
    ],
)
def test_what_the_server_cannot_follow_is_a_clear_error(url: str, fields: Any) -> None:
    body = {"model": "any", "messages": MESSAGES, "max_tokens": 2, **fields}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["message"]


def test_langchain_gets_structured_output(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    model = langchain.ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="any", max_tokens=90)
    assert isinstance(model.with_structured_output(Picked).invoke("pick"), Picked)
    # Without `strict` the schema allows further properties, and random weights write many.
    calling = model.with_structured_output(Picked, method="function_calling", strict=True)
    assert isinstance(calling.invoke("pick"), Picked)


@pytest.mark.filterwarnings("ignore")
def test_litellm_completes_and_streams(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no list of prices from elsewhere
    litellm = pytest.importorskip("litellm", reason="litellm is not installed (extra clients)")
    request: Any = {"model": "openai/any", "api_base": f"{url}/v1", "api_key": "none"}
    request |= {"messages": MESSAGES, "max_tokens": 4, "seed": 1}
    whole = litellm.completion(**request)
    chunks = litellm.completion(**request, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == (whole.choices[0].message.content or "")


def test_biases_and_penalties_change_which_tokens_come(
    client: openai.OpenAI, edge: EdgeClient
) -> None:
    wanted = edge.tokenizer.encode("z")[-1]
    request: Any = {"model": "any", "prompt": "hello", "max_tokens": 4, "temperature": 0}
    biased = {**request, "logit_bias": {str(wanted): 6}}
    repeated = client.completions.create(**biased).choices[0].text
    assert repeated == edge.tokenizer.decode([wanted] * 4)
    assert repeated != client.completions.create(**request).choices[0].text
    once = client.completions.create(**biased, frequency_penalty=2, presence_penalty=2)
    assert 1 <= once.choices[0].text.count("z") < 4


def test_null_means_absent(url: str) -> None:
    body: Any = {"model": "any", "messages": MESSAGES, "max_tokens": 3, "temperature": 0}
    nulls: Any = dict.fromkeys(("stop", "tools", "n", "logprobs", "response_format", "seed"))
    answers = [
        httpx.post(f"{url}/v1/chat/completions", json=asked).json()["choices"]
        for asked in (body, {**body, **nulls})
    ]
    assert answers[0] == answers[1]
