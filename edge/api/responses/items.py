"""The field `input` of /v1/responses as a conversation: messages, calls of tools, their outputs.

Items are turned into messages as chats have them, and `edge.api.messages` checks the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edge.api.errors import ApiError, shown_value
from edge.api.fields import check_known
from edge.api.messages import conversation
from edge.device.tokenizer import ChatMessage

_TEXT_PARTS: Final[Mapping[str, frozenset[str]]] = {
    "input_text": frozenset({"type", "text"}),
    "output_text": frozenset({"type", "text", "annotations", "logprobs"}),
}
# An item's id and status come back with it, and say nothing to the model.
_MESSAGE: Final = frozenset({"type", "id", "status", "role", "content"})
_CALL: Final = frozenset({"type", "id", "status", "call_id", "name", "arguments"})
_OUTPUT: Final = frozenset({"type", "id", "status", "call_id", "output"})


def input_conversation(value: Any, instructions: str) -> list[ChatMessage]:
    """The conversation of one text or a list of items, with the instructions before it.

    ApiError names the item that is wrong.
    """
    messages: list[dict[str, Any]] = []
    places: list[str] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
        places.append("instructions")
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise ApiError("input must be a text or a list of at least one item", param="input")
    for index, item in enumerate(value):
        where = f"input[{index}]"
        message = _message_of(item, where)
        last = messages[-1] if messages else {}
        if "tool_calls" in message and last.get("role") == "assistant":
            last.setdefault("tool_calls", []).extend(message["tool_calls"])
            continue
        messages.append(message)
        places.append(where)
    return conversation(messages, places)


def _message_of(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ApiError(f"{where} must be an object", param=where)
    kind = item.get("type", "message")
    if kind == "message":
        check_known(item, _MESSAGE, where)
        content = _text_of(item.get("content"), f"{where}.content")
        return {"role": item.get("role"), "content": content}
    if kind == "function_call":
        check_known(item, _CALL, where)
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": _call_id(item, where), "type": "function", "function": function}
        return {"role": "assistant", "tool_calls": [call]}
    if kind == "function_call_output":
        check_known(item, _OUTPUT, where)
        output = _text_of(item.get("output"), f"{where}.output")
        return {"role": "tool", "tool_call_id": _call_id(item, where), "content": output}
    raise ApiError(f"{where}.type: {shown_value(kind)} is not supported here", param=where)


def _call_id(item: Mapping[str, Any], where: str) -> str:
    value = item.get("call_id")
    if not isinstance(value, str):
        raise ApiError(f"{where}.call_id must be a text", param=where)
    return value


def _text_of(value: Any, where: str) -> str:
    """A text, or a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ApiError(f"{where} must be text", param=where)
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in _TEXT_PARTS or not isinstance(text, str):
            raise ApiError(f"{where} must be text (input_text)", param=where)
        check_known(part, _TEXT_PARTS[kind], where)
        texts.append(text)
    return "".join(texts)
