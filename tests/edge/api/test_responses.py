"""/v1/responses with the official client: text, streams, tools, formats, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pydantic
import pytest

from edge.api.asked import ApiRequest
from edge.api.errors import ApiError
from edge.api.responses.request import responses_request
from edge.api.responses.shape import ResponseShape
from edge.api.shape import AnswerSource
from edge.device.detokenizer import DecodedToken
from edge.generation.completion import CompletionRequest
from tests.edge.api.tool_model import FLAT_TOOL

GREEDY: Any = {"model": "any", "temperature": 0}
LOGPROBS: Any = ["message.output_text.logprobs"]


class Chosen(pydantic.BaseModel):
    """What a structured answer holds."""

    color: bool


def test_a_text_is_answered_as_a_chat_answers_it(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        **GREEDY, input="tell me", instructions="be brief", max_output_tokens=9
    )
    chat = client.chat.completions.create(
        **GREEDY,
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "tell me"},
        ],
        max_tokens=9,
    )
    assert answer.output_text == chat.choices[0].message.content
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 9
    assert answer.instructions == "be brief"
    assert answer.model_dump()["store"] is False


def test_an_answer_goes_back_as_it_came(client: openai.OpenAI) -> None:
    first = client.responses.create(**GREEDY, input="tell me", max_output_tokens=5)
    said: Any = [item.model_dump() for item in first.output]
    asked: Any = [{"type": "input_text", "text": "and "}, {"type": "input_text", "text": "then?"}]
    again = client.responses.create(
        **GREEDY,
        input=[
            {"role": "user", "content": "tell me"},
            *said,
            {"role": "user", "content": asked},
        ],
        max_output_tokens=5,
    )
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.input_tokens > first.usage.input_tokens


def test_a_stream_brings_the_same_text_in_the_events_that_clients_know(
    client: openai.OpenAI,
) -> None:
    request: Any = {**GREEDY, "input": "tell me", "max_output_tokens": 9}
    whole = client.responses.create(**request)
    events = list(client.responses.create(**request, stream=True))
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in deltas) == whole.output_text
    last: Any = events[-1]
    assert last.response.output_text == whole.output_text
    assert last.response.usage == whole.usage
    assert len({event.item_id for event in deltas}) == 1


def test_the_clients_own_stream_builds_a_whole_answer(client: openai.OpenAI) -> None:
    asked: Any = {"model": "any", "input": "tell me", "max_output_tokens": 90}
    with client.responses.stream(**asked, text_format=Chosen, extra_body={"seed": 2}) as stream:
        done = stream.get_final_response()
    assert done.status == "completed"
    assert isinstance(done.output_parsed, Chosen)


def test_an_answer_parses_as_its_schema(client: openai.OpenAI) -> None:
    answer = client.responses.parse(
        model="any", input="tell me", text_format=Chosen, extra_body={"seed": 2}
    )
    assert isinstance(answer.output_parsed, Chosen)
    free = client.responses.create(
        model="any",
        input="tell me",
        text={"format": {"type": "json_object"}},
        max_output_tokens=90,
        extra_body={"seed": 1},
    )
    assert free.output_text.startswith("{")


def test_a_tool_is_called_and_its_output_is_read(client: openai.OpenAI) -> None:
    request: Any = {"model": "any", "tools": [FLAT_TOOL], "extra_body": {"seed": 1}}
    request |= {"max_output_tokens": 90, "tool_choice": {"type": "function", "name": "pick"}}
    answer = client.responses.create(**request, input="tell me")
    (call,) = answer.output
    assert call.type == "function_call"
    assert call.name == "pick"
    assert json.loads(call.arguments)["color"] in ("red", "blue")
    returned: Any = [
        {"role": "user", "content": "tell me"},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "done"},
    ]
    after = client.responses.create(**GREEDY, input=returned, max_output_tokens=3)
    assert after.usage is not None
    assert after.usage.output_tokens <= 3


def test_a_stream_brings_a_call_as_an_item(client: openai.OpenAI) -> None:
    request: Any = {"model": "any", "tools": [FLAT_TOOL], "tool_choice": "required"}
    request |= {"max_output_tokens": 90, "extra_body": {"seed": 1}}
    with client.responses.stream(**request, input="tell me") as stream:
        kinds = [event.type for event in stream]
        (call,) = stream.get_final_response().output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["color"] in ("red", "blue")
    assert "response.function_call_arguments.delta" in kinds
    assert "response.function_call_arguments.done" in kinds
    assert "response.output_text.delta" not in kinds


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_stand_beside_the_text(client: openai.OpenAI, stream: bool) -> None:
    request: Any = {**GREEDY, "input": "tell me", "max_output_tokens": 4, "stream": stream}
    answer: Any = client.responses.create(**request, include=LOGPROBS, top_logprobs=3)
    last = list(answer)[-1].response if stream else answer
    (part,) = last.output[0].content
    assert len(part.logprobs) == 4
    assert all(len(entry.top_logprobs) == 3 for entry in part.logprobs)
    assert "".join(entry.token for entry in part.logprobs) == part.text


DEFAULT = CompletionRequest()
BODY = {"model": "m", "input": "hello"}
DEEP: Any = "x"
for _ in range(900):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": ["user"], "content": "a"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": "a", "name": "b"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0]"),
        ({"input": [{"type": ["message"]}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}] * 200}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": 1}]}, "input[0]"),
        (
            {"input": [{"type": "function_call", "call_id": "", "name": "f", "arguments": "["}]},
            "input[0]",
        ),
        ({"input": [{"type": "function_call_output", "output": "a"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": 1}]}, "input[0].o"),
        ({"instructions": ["a"]}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": "json"}, "text"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text"),
        ({"include": "all"}, "include"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"include": [{}]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "include": LOGPROBS}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": "pick"}, "tools"),
        ({"tools": [FLAT_TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"tools": [FLAT_TOOL], "tool_choice": [1]}, "tool_choice"),
        (
            {
                "tools": [FLAT_TOOL],
                "tool_choice": "required",
                "text": {"format": {"type": "json_object"}},
            },
            "text.format",
        ),
        ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        responses_request({**BODY, **change}, default=DEFAULT)
    assert caught.value.status == 400
    assert (caught.value.param or "").startswith(param)


@pytest.mark.parametrize(
    "content",
    [
        b'{"model": "m", "input": "\xff"}',
        b'{"model": "m", "input": "\\ud83d"}',
        b'{"input": "a"}',
        b'{"model": "m", "input": "a", "input": "b"}',
        json.dumps({"model": "m", "input": DEEP}).encode(),
        b'{"model": "m", "input": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"model": "m", "input": [' + b"{}," * 80_000 + b"{}]}",
        json.dumps({"model": "m", "input": "a", "max_output_tokens": 10**20}).encode(),
    ],
)
def test_a_hostile_body_is_one_clear_error(url: str, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}/v1/responses", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert message
    assert "\n" not in message


def test_answers_are_not_kept(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


def test_a_stream_that_breaks_off_ends_with_a_failed_response() -> None:
    asked: ApiRequest = responses_request(BODY, default=DEFAULT)
    source = AnswerSource(
        model="m", fingerprint="f", text_of=lambda token_id: DecodedToken("", "", b"")
    )
    shape = ResponseShape(asked, source)
    list(shape.begin(0, None, ()))
    (event,) = shape.failed(ApiError("gone", status=503, code="server_lost"))
    assert event["type"] == "response.failed"
    assert event["response"]["status"] == "failed"
    assert event["response"]["error"] == {"code": "server_lost", "message": "gone"}
    assert shape.encoded(event).startswith("event: response.failed\ndata: {")
