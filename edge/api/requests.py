"""Request bodies of the OpenAI API as checked values.

A field that asks for something this server cannot do is refused by name. No field that would change
the answer is silently ignored. Fields that only describe the caller (`user`, `metadata`, ...) are
accepted and unused. Beside OpenAI's own fields there are top_k, min_p and repetition_penalty, as in
other local servers, and Splitpoint's level, draft and deadline_tbt_s.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from decoding.params import SamplingParams
from edge.api.errors import ApiError, shown, shown_value
from edge.api.messages import NO_TOOLS, check_message_fields, check_part_fields
from edge.device.tokenizer import ChatMessage
from edge.errors import InputError
from edge.generation.completion import AUTO_LEVEL, CompletionRequest
from edge.text_input import check_text

COMPLETIONS_MAX_TOKENS: Final = 16  # what OpenAI's completions give when nothing is asked for
MAX_STOPS: Final = 16
MAX_NUMBER: Final = 1e12
ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_SAMPLING: Final = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop"}
)
_SHARED: Final = _SAMPLING | {
    "model",
    "n",
    "stream",
    "stream_options",
    "logprobs",
    "max_tokens",
    "level",
    "draft",
    "deadline_tbt_s",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    # They describe the caller or concern OpenAI's own service; they change no token here.
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
}
_CHAT: Final = _SHARED | {
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
}
_COMPLETIONS: Final = _SHARED | {"prompt", "suffix", "echo", "best_of"}
# Values that ask for nothing special; any other value asks for something we do not have.
_NOTHING: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "top_logprobs": (None, 0),
}
_TOOL_FIELDS: Final = frozenset({"tools", "tool_choice", "functions", "function_call"})
_STREAM_OPTIONS: Final = frozenset({"include_usage", "include_obfuscation", "include_splitpoint"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """One request, checked. prompt: text, token ids, or a conversation."""

    prompt: str | list[int] | list[ChatMessage]
    completion: CompletionRequest
    is_chat: bool
    stream: bool
    include_usage: bool
    include_splitpoint: bool


def chat_request(body: Mapping[str, Any], *, default: CompletionRequest) -> ApiRequest:
    """The body of /v1/chat/completions. ApiError names the field that is wrong."""
    _check_texts(body, "")
    _check_fields(body, _CHAT)
    max_tokens = _maximum(body, "max_completion_tokens") or _maximum(body, "max_tokens")
    with_logprobs = _flag(body, "logprobs")
    return _request(
        body,
        prompt=_messages(body.get("messages")),
        is_chat=True,
        max_tokens=max_tokens,
        with_logprobs=with_logprobs,
        default=default,
    )


def completions_request(body: Mapping[str, Any], *, default: CompletionRequest) -> ApiRequest:
    """The body of /v1/completions. ApiError names the field that is wrong."""
    _check_texts(body, "")
    _check_fields(body, _COMPLETIONS)
    num_logprobs = _number(body, "logprobs", None)
    if num_logprobs is not None and num_logprobs not in (0, 1):
        raise ApiError(
            "logprobs: only those of the chosen tokens are available (0 or 1)", param="logprobs"
        )
    return _request(
        body,
        prompt=_prompt(body.get("prompt")),
        is_chat=False,
        max_tokens=_maximum(body, "max_tokens") or COMPLETIONS_MAX_TOKENS,
        with_logprobs=num_logprobs is not None,
        default=default,
    )


def _request(
    body: Mapping[str, Any],
    *,
    prompt: str | list[int] | list[ChatMessage],
    is_chat: bool,
    max_tokens: int | None,
    with_logprobs: bool,
    default: CompletionRequest,
) -> ApiRequest:
    include_usage = _include_usage(body)
    level = _name(body, "level", AUTO_LEVEL)
    try:
        completion = CompletionRequest(
            max_new_tokens=max_tokens,
            sampling=_sampling(body, with_logprobs),
            stop=_stops(body.get("stop")),
            level=level if level != AUTO_LEVEL else default.level,
            draft=_name(body, "draft", default.draft),
            deadline_tbt_s=_number(body, "deadline_tbt_s", default.deadline_tbt_s),
            context=default.context,
            prefill=default.prefill,
            prefer=default.prefer,
        )
    except (ValueError, InputError) as error:  # both name the parameter
        raise ApiError(str(error)) from error
    return ApiRequest(
        prompt=prompt,
        completion=completion,
        is_chat=is_chat,
        stream=_flag(body, "stream"),
        include_usage=include_usage,
        include_splitpoint=_flag(body.get("stream_options") or {}, "include_splitpoint"),
    )


def _sampling(body: Mapping[str, Any], with_logprobs: bool) -> SamplingParams:
    """OpenAI's defaults: temperature 1, and another seed each time unless one is given."""
    seed = _integer(body, "seed")
    return SamplingParams(
        temperature=_real(body, "temperature", 1.0),
        top_p=_real(body, "top_p", 1.0),
        top_k=_integer(body, "top_k") or 0,
        min_p=_real(body, "min_p", 0.0),
        repetition_penalty=_real(body, "repetition_penalty", 1.0),
        seed=secrets.randbits(63) if seed is None else seed % (1 << 64),
        logprobs=with_logprobs,
    )


def _check_texts(value: Any, where: str) -> None:
    """ApiError when a string anywhere in the body is no text: JSON may say "\\ud83d" alone."""
    if isinstance(value, str):
        try:
            check_text(value, where)
        except InputError as error:
            raise ApiError(str(error), param=where) from error
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, int):  # token ids are many
                _check_texts(item, f"{where}[{index}]")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _check_texts(name, f"a name in {where or 'the body'}")
            _check_texts(item, f"{where}.{name}" if where else name)


def _check_fields(body: Mapping[str, Any], known: frozenset[str] | set[str]) -> None:
    for name in body:
        if name not in known:
            raise ApiError(f"unrecognized request argument supplied: {shown(name)}", param=name)
    for name, values in _NOTHING.items():
        if name in body and not _says_nothing(body[name], values):
            given = f"{shown_value(body[name])} is not supported here"
            raise ApiError(f"{name}: {NO_TOOLS if name in _TOOL_FIELDS else given}", param=name)


def _says_nothing(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether `value` is one of `values`; true and false are no numbers."""
    return any(
        value == known and isinstance(value, bool) is isinstance(known, bool) for known in values
    )


def _include_usage(body: Mapping[str, Any]) -> bool:
    """What `stream_options` asks for. ApiError for options that would be ignored."""
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError("stream_options must be an object", param="stream_options")
    if options and not body.get("stream"):
        raise ApiError("stream_options needs stream", param="stream_options")
    for name in options:
        if name not in _STREAM_OPTIONS:
            raise ApiError(f"stream_options.{shown(name)}: unknown option", param="stream_options")
    if _flag(options, "include_obfuscation"):
        raise ApiError("include_obfuscation is not supported here", param="stream_options")
    return _flag(options, "include_usage")


def _messages(value: Any) -> list[ChatMessage]:
    if not isinstance(value, list) or not value:
        raise ApiError("messages must be a list of at least one message", param="messages")
    messages: list[ChatMessage] = []
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if isinstance(message, dict):
            check_message_fields(message, where)
        if not isinstance(message, dict) or not _is_role(message.get("role")):
            raise ApiError(f"{where}: role must be one of {', '.join(ROLES)}", param=where)
        content = _content(message.get("content"), where)
        messages.append({"role": ROLES[message["role"]], "content": content})
    return messages


def _is_role(value: Any) -> bool:
    return isinstance(value, str) and value in ROLES


def _content(value: Any, where: str) -> str:
    """Text, or a list of text parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in value
    ):
        for part in value:
            check_part_fields(part, where)
        return "".join(part["text"] for part in value)
    raise ApiError(f"{where}: content must be text", param=f"{where}.content")


def _prompt(value: Any) -> str | list[int]:
    """One text or one list of token ids, alone or in a list of one."""
    if isinstance(value, list) and len(value) == 1 and not _is_integer(value[0]):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(_is_integer(item) for item in value):
        return list(value)
    raise ApiError("prompt must be one text or one list of token ids", param="prompt")


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops: Sequence[Any] = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(stop, str) and stop for stop in stops)
    ):
        raise ApiError(f"stop must be a text or a list of up to {MAX_STOPS} texts", param="stop")
    return tuple(stops)


def _name(body: Mapping[str, Any], name: str, default: str) -> str:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(f"{name} must be a string", param=name)
    return default if value is None else value


def _maximum(body: Mapping[str, Any], name: str) -> int | None:
    value = _integer(body, name)
    if value is not None and value < 1:
        raise ApiError(f"{name} must be at least 1", param=name)
    return value


def _integer(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not _is_integer(value):
        raise ApiError(f"{name} must be an integer", param=name)
    return int(value)


def _number(body: Mapping[str, Any], name: str, default: float | None) -> float | None:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ApiError(f"{name} must be a number", param=name)
    if not -MAX_NUMBER <= value <= MAX_NUMBER:  # NaN too, which Python's JSON knows
        raise ApiError(f"{name} is out of range", param=name)
    return value


def _real(body: Mapping[str, Any], name: str, default: float) -> float:
    value = _number(body, name, default)
    return default if value is None else float(value)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ApiError(f"{name} must be true or false", param=name)
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
