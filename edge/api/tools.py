"""The tools of a request: what the model may call, and what `tool_choice` makes of it.

A forced call ("required", or a tool by name) is made under a grammar: the answer is one JSON object
with the tool's name and its arguments. So no template has to know how to force a call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from decoding.grammar import Grammar
from edge.api.errors import ApiError, shown_value
from edge.api.fields import check_known, flag_field
from edge.api.sampling_fields import schema_grammar

MAX_TOOLS: Final = 128  # as OpenAI's
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_FUNCTION_FIELDS: Final = frozenset({"name", "description", "parameters", "strict"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedTools:
    """schemas: as the template gets them. names: that may be called.

    grammar: of a forced call; None when the model decides. parallel: several calls an answer.
    """

    schemas: tuple[dict[str, Any], ...]
    names: frozenset[str]
    grammar: Grammar | None = None
    parallel: bool = True


def asked_tools(body: Mapping[str, Any]) -> AskedTools | None:
    """What `tools`, `tool_choice` and `parallel_tool_calls` ask for; None for no tools.

    ApiError names the field that is wrong.
    """
    parallel = flag_field(body, "parallel_tool_calls", True)
    choice = body.get("tool_choice")
    functions = _functions(body.get("tools"))
    if not functions:
        if choice not in (None, "none", "auto"):
            raise ApiError("tool_choice needs tools", param="tool_choice")
        return None
    if choice == "none":
        return None
    schemas = tuple({"type": "function", "function": function} for function in functions.values())
    grammar = None
    if choice not in (None, "auto"):
        names = list(functions) if choice == "required" else [_chosen(choice, functions)]
        functions = {name: functions[name] for name in names}
        grammar = schema_grammar(_call_schema(functions), "tools")
    return AskedTools(
        schemas=schemas, names=frozenset(functions), grammar=grammar, parallel=parallel
    )


def _functions(value: Any) -> dict[str, dict[str, Any]]:
    """By name, in their order."""
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise ApiError(f"tools must be a list of at most {MAX_TOOLS} tools", param="tools")
    found: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(value):
        where = f"tools[{index}]"
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise ApiError(f"{where}: must have the type function, and a function", param=where)
        check_known(tool, frozenset({"type", "function"}), where)
        check_known(function, _FUNCTION_FIELDS, f"{where}.function")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ApiError(
                f"{where}.function.name: 1 to 64 letters, digits, _, . and -", param=where
            )
        if name in found:
            raise ApiError(f"{where}: the tool {name} is there twice", param=where)
        if not isinstance(function.get("parameters", {}), dict):
            raise ApiError(f"{where}.function.parameters must be an object", param=where)
        if not isinstance(function.get("description", ""), str):
            raise ApiError(f"{where}.function.description must be a text", param=where)
        flag_field(function, "strict")
        found[name] = {key: item for key, item in function.items() if key != "strict"}
    return found


def _chosen(choice: Any, functions: Mapping[str, Any]) -> str:
    """The tool that is chosen by name."""
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if function is None or not isinstance(name, str) or choice.get("type") != "function":
        raise ApiError(
            "tool_choice must be none, auto, required or one function by name", param="tool_choice"
        )
    check_known(choice, frozenset({"type", "function"}), "tool_choice")
    check_known(function, frozenset({"name"}), "tool_choice.function")
    if name not in functions:
        raise ApiError(f"tool_choice: no tool {shown_value(name)}", param="tool_choice")
    return name


def _call_schema(functions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of one call of one of the functions."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "arguments": function.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, function in functions.items()
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}
