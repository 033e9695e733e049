"""Which fields a message of a conversation may have.

A field that changes what the model should read is used or refused, never left out in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edge.api.errors import ApiError, shown

NO_TOOLS: Final = "tools are not supported yet"
TOOL_ROLES: Final = ("tool", "function")

_READ: Final = frozenset({"role", "content"})
_TOOL_FIELDS: Final = frozenset({"tool_calls", "tool_call_id", "function_call"})
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
}


def check_message_fields(message: Mapping[str, Any], where: str) -> None:
    """ApiError for a field that would be ignored although it says something."""
    if message.get("role") in TOOL_ROLES:
        raise ApiError(f"{where}.role: {NO_TOOLS}", param=f"{where}.role")
    for name, value in message.items():
        if name in _READ or value is None or value in _NOTHING.get(name, ()):
            continue
        reason = NO_TOOLS if name in _TOOL_FIELDS else _REASON.get(name, "unknown field")
        raise ApiError(f"{where}.{shown(name)}: {reason}", param=f"{where}.{name}")


def check_part_fields(part: Mapping[str, Any], where: str) -> None:
    """ApiError for a field of a text part that would be ignored."""
    for name, value in part.items():
        if name not in ("type", "text") and value is not None:
            raise ApiError(
                f"{where}.content: unknown field {shown(name)} of a text part",
                param=f"{where}.content",
            )
