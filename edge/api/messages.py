"""The messages of a conversation, checked: text, tool calls, and answers of tools.

A field that changes what the model should read is used or refused, never left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from edge.api.errors import ApiError, shown
from edge.api.fields import check_known
from edge.device.tokenizer import ChatMessage

ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
MAX_CALLS: Final = 128  # of one message

_READ: Final = frozenset({"role", "content"})
_READ_BY_ROLE: Final[Mapping[str, frozenset[str]]] = {
    "assistant": frozenset({"tool_calls"}),
    "tool": frozenset({"tool_call_id", "name"}),
}
# Fields of an earlier answer that clients send back, and the values in which they say nothing.
_NOTHING: Final[Mapping[str, tuple[Any, ...]]] = {
    "tool_calls": ([],),
    "refusal": ("",),
    "annotations": ([],),
    "reasoning_content": ("",),
}
_REASON: Final[Mapping[str, str]] = {
    "name": "names of participants are not supported: put the name into the text",
    "refusal": "refusals are not supported: put the text into content",
    "audio": "audio is not supported",
    "function_call": "the old form of tool calls: use tool_calls",
    "tool_calls": "only an assistant's message has tool calls",
    "tool_call_id": "only a tool's message has it",
}


def conversation(value: Any, places: Sequence[str] = ()) -> list[ChatMessage]:
    """The field `messages`. ApiError names the place that is wrong.

    places: what errors call each message, where it came in another field.
    """
    if not isinstance(value, list) or not value:
        raise ApiError("messages must be a list of at least one message", param="messages")
    places = places or [f"messages[{index}]" for index in range(len(value))]
    return [_message(message, where) for message, where in zip(value, places, strict=True)]


def check_message_fields(message: Mapping[str, Any], where: str) -> None:
    """ApiError for a field that would be ignored although it says something."""
    role = message.get("role")
    if role == "function":
        reason = "the old form of a tool's answer: use the role tool"
        raise ApiError(f"{where}.role: {reason}", param=f"{where}.role")
    read = _READ | (_READ_BY_ROLE.get(role, frozenset()) if isinstance(role, str) else frozenset())
    for name, value in message.items():
        if name in read or value is None or value in _NOTHING.get(name, ()):
            continue
        reason = _REASON.get(name, "unknown field")
        raise ApiError(f"{where}.{shown(name)}: {reason}", param=f"{where}.{name}")


def check_part_fields(part: Mapping[str, Any], where: str) -> None:
    """ApiError for a field of a text part that would be ignored."""
    for name, value in part.items():
        if name not in ("type", "text") and value is not None:
            raise ApiError(
                f"{where}.content: unknown field {shown(name)} of a text part",
                param=f"{where}.content",
            )


def _message(message: Any, where: str) -> ChatMessage:
    if isinstance(message, dict):
        check_message_fields(message, where)
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(f"{where}: role must be one of {', '.join(ROLES)}", param=where)
    calls = _calls(message.get("tool_calls"), where)
    content = message.get("content")
    made: ChatMessage = {
        "role": ROLES[role],
        "content": "" if calls and content is None else _content(content, where),
    }
    if calls:
        made["tool_calls"] = calls
    if role == "tool":
        for name in ("tool_call_id", "name"):
            value = message.get(name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise ApiError(f"{where}.{name} must be a text", param=f"{where}.{name}")
            made[name] = value
    return made


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


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """An assistant's tool calls as templates read them: the arguments are an object."""
    if value is None:
        return []
    where = f"{where}.tool_calls"
    if not isinstance(value, list) or len(value) > MAX_CALLS:
        raise ApiError(f"{where}: must be a list of at most {MAX_CALLS} calls", param=where)
    return [_call(call, f"{where}[{index}]") for index, call in enumerate(value)]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise ApiError(f"{where}: must have the type function, and a function", param=where)
    check_known(call, frozenset({"id", "type", "function", "index"}), where)
    check_known(function, frozenset({"name", "arguments"}), f"{where}.function")
    name, text, call_id = function.get("name"), function.get("arguments"), call.get("id", "")
    if not isinstance(name, str) or not name or not isinstance(call_id, str):
        raise ApiError(f"{where}: id and function.name must be texts", param=where)
    try:
        arguments = json.loads(text or "{}") if isinstance(text, str | None) else None
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(f"{where}.function.arguments must be a JSON object as text", param=where)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
