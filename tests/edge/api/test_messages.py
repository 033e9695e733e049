"""A message's fields: used, refused by name, or said to say nothing."""

from __future__ import annotations

from typing import Any

import pytest

from edge.api.errors import ApiError
from edge.api.messages import check_message_fields, check_part_fields
from edge.api.requests import chat_request
from edge.generation.completion import CompletionRequest

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "hi"}


@pytest.mark.parametrize(
    ("fields", "name", "says"),
    [
        ({"role": "user", "tool_calls": [CALL]}, "tool_calls", "only an assistant"),
        ({"function_call": {"name": "f"}}, "function_call", "use tool_calls"),
        ({"tool_call_id": "1"}, "tool_call_id", "only a tool"),
        ({"role": "function", "name": "f"}, "role", "use the role tool"),
        ({"name": "Ann"}, "name", "put the name into the text"),
        ({"refusal": "no"}, "refusal", "refusals"),
        ({"audio": {"id": "1"}}, "audio", "audio"),
        ({"annotations": [{"type": "url_citation"}]}, "annotations", "unknown field"),
        ({"reasoning_content": "hm"}, "reasoning_content", "unknown field"),
        ({"prefix": True}, "prefix", "unknown field"),
    ],
)
def test_a_field_that_would_be_ignored_is_refused_by_name(
    fields: dict[str, Any], name: str, says: str
) -> None:
    message = {**ANSWER, **fields}
    with pytest.raises(ApiError, match=says) as caught:
        check_message_fields(message, "messages[3]")
    assert caught.value.param == f"messages[3].{name}"
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}, message]}
    with pytest.raises(ApiError, match=says):
        chat_request(body, default=CompletionRequest())


@pytest.mark.parametrize(
    "fields",
    [
        {"refusal": None},
        {"tool_calls": None, "function_call": None, "name": None, "anything": None},
        {"tool_calls": [], "annotations": [], "refusal": ""},
    ],
)
def test_an_answer_of_ours_may_come_back_as_clients_send_it(fields: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [{**ANSWER, **fields}]}
    assert chat_request(body, default=CompletionRequest()).prompts == ([ANSWER],)


def test_a_part_has_a_type_and_a_text() -> None:
    check_part_fields({"type": "text", "text": "x", "cache_control": None}, "messages[0]")
    with pytest.raises(ApiError, match="cache_control"):
        check_part_fields({"type": "text", "text": "x", "cache_control": {}}, "messages[0]")


def test_calls_and_answers_of_tools_become_what_templates_read() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "5"},
        ],
    }
    prompt: Any = chat_request(body, default=CompletionRequest()).prompts[0]
    call, answer = prompt
    assert call == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    assert answer == {"role": "tool", "tool_call_id": "1", "content": "5"}


@pytest.mark.parametrize("arguments", ["[1]", "{", "[" * 100_000, 5, "5"])
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    body = {"model": "m", "messages": [{"role": "assistant", "tool_calls": [call]}]}
    with pytest.raises(ApiError, match="arguments must be a JSON object"):
        chat_request(body, default=CompletionRequest())
