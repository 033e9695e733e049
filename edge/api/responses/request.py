"""The body of /v1/responses as checked values.

What needs answers that are kept (`store`, `previous_response_id`, ...) is refused by name, and so
is every field that would be ignored. top_k, seed, stop, penalties and the fields of Splitpoint work
as in chats, although OpenAI's own Responses API lacks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from decoding.grammar import Grammar
from decoding.params import MAX_TOP_LOGPROBS
from edge.api.asked import (
    OWN_FIELDS,
    ApiRequest,
    check_fields,
    completion_of,
    named_errors,
    stream_options,
)
from edge.api.errors import ApiError, shown_value
from edge.api.fields import (
    check_known,
    check_texts,
    count_field,
    flag_field,
    maximum_field,
    name_field,
)
from edge.api.responses.items import input_conversation
from edge.api.sampling_fields import (
    SAMPLING_FIELDS,
    SCHEMA_FIELDS,
    named_grammar,
    plain_grammar,
    sampling_of,
)
from edge.api.tools import AskedTools, asked_tools
from edge.generation.completion import CompletionRequest

LOGPROBS: Final = "message.output_text.logprobs"
# The second one asks for something that these answers never have.
_INCLUDES: Final = (LOGPROBS, "reasoning.encrypted_content")
# Values that ask for nothing special; any other value asks for something we do not have.
_NOTHING: Final[Mapping[str, tuple[Any, ...]]] = {
    "store": (False,),
    "background": (False,),
    "truncation": ("disabled",),
    "reasoning": ({}, {"effort": "none"}),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "max_tool_calls": (),
    "context_management": ([],),
    "moderation": (),
}
_KEPT: Final = "answers are not kept here: send the whole conversation as input"
_INSTEAD: Final[Mapping[str, str]] = {
    "store": "answers are not kept here",
    "background": "answers are not kept here: wait for the answer, or use stream",
    "previous_response_id": _KEPT,
    "conversation": _KEPT,
    "prompt": "prompts are not kept here: send the text as input",
    "max_tool_calls": "the server runs no tools: it answers with calls",
}
_KNOWN: Final = (
    SAMPLING_FIELDS
    | OWN_FIELDS
    | set(_NOTHING)
    | {
        "model",
        "input",
        "instructions",
        "max_output_tokens",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "text",
        "top_logprobs",
        "include",
        # They describe the caller or concern OpenAI's own service; they change no token here.
        "user",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)
# What an answer repeats, and what stands there when the request has nothing.
_REPEATED: Final[Mapping[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "user": None,
}


def responses_request(body: Mapping[str, Any], *, default: CompletionRequest) -> ApiRequest:
    """The body of /v1/responses. ApiError names the field that is wrong."""
    check_texts(body, "")
    check_fields(body, _KNOWN, nothing=_NOTHING, instead=_INSTEAD)
    stream_options(body, frozenset({"include_obfuscation"}))
    tools = asked_tools(_chat_tools(body))
    with named_errors():
        sampling = sampling_of(body, logprobs=_logprobs(body), grammar=_grammar(body, tools))
    return ApiRequest(
        prompts=(input_conversation(body.get("input"), name_field(body, "instructions", "")),),
        completion=completion_of(
            body,
            sampling=sampling,
            max_tokens=maximum_field(body, "max_output_tokens"),
            default=default,
        ),
        stream=flag_field(body, "stream"),
        tools=tools,
        repeated={name: body.get(name, value) for name, value in _REPEATED.items()},
    )


def _logprobs(body: Mapping[str, Any]) -> int | None:
    """How many likely tokens stand beside each token; None: no log-probabilities."""
    included = body.get("include", [])
    if not isinstance(included, list):
        raise ApiError("include must be a list", param="include")
    for name in included:
        if name not in _INCLUDES:
            raise ApiError(f"include: {shown_value(name)} is not supported here", param="include")
    count = count_field(body, "top_logprobs", None, low=0, high=MAX_TOP_LOGPROBS)
    if LOGPROBS in included:
        return count or 0
    if count:
        raise ApiError(f"top_logprobs needs include: [{LOGPROBS!r}]", param="top_logprobs")
    return None


def _grammar(body: Mapping[str, Any], tools: AskedTools | None) -> Grammar | None:
    """What `text.format` or a forced call asks for."""
    grammar = _text_grammar(body.get("text", {}))
    forced = None if tools is None else tools.grammar
    if grammar is not None and forced is not None:
        raise ApiError("text.format: a forced tool call has a format already", param="text.format")
    return grammar or forced


def _text_grammar(text: Any) -> Grammar | None:
    where = "text.format"
    if not isinstance(text, dict):
        raise ApiError("text must be an object", param="text")
    check_known(text, frozenset({"format", "verbosity"}), "text")
    if text.get("verbosity", "medium") != "medium":
        raise ApiError("text.verbosity is not supported here", param="text")
    given = text.get("format")
    if isinstance(given, dict) and given.get("type") == "json_schema":
        check_known(given, SCHEMA_FIELDS | {"type"}, where)
        return named_grammar(given, where)
    return plain_grammar(given, where)


def _chat_tools(body: Mapping[str, Any]) -> dict[str, Any]:
    """The tools as chats have them: a function's fields are an object of their own there."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    return {
        "tools": [_nested(tool) for tool in tools] if isinstance(tools, list) else tools,
        "tool_choice": _nested(choice),
        "parallel_tool_calls": body.get("parallel_tool_calls"),
    }


def _nested(tool: Any) -> Any:
    if not isinstance(tool, dict):
        return tool
    function = {name: value for name, value in tool.items() if name != "type"}
    return {"type": tool.get("type"), "function": function}
