"""Tool calls are found in every family's form, however the answer is cut, and text is kept."""

from __future__ import annotations

import json

import pytest

from edge.api.tool_calls.forms import ANY, FORCED, HERMES, LLAMA, MISTRAL, CallForm, form_of
from edge.api.tool_calls.reader import ToolCallReader

NAMES = frozenset({"f", "g"})


def read(form: CallForm, text: str, size: int, *, parallel: bool = True) -> tuple[str, list]:
    reader = ToolCallReader(form, NAMES, parallel=parallel)
    parts = [reader.push(text[place : place + size]) for place in range(0, len(text), size)]
    parts.append(reader.flush())
    calls = [call for part in parts for call in part.calls]
    return "".join(part.text for part in parts), [
        (call.name, json.loads(call.arguments)) for call in calls
    ]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("form", "text", "shown", "calls"),
    [
        (
            HERMES,
            'Well.\n<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>\n'
            '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
            "Well.\n",
            [("f", {"a": "</tool_call>"}), ("g", {})],
        ),
        (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
        (LLAMA, '<|python_tag|>{"name": "f", "parameters": {}}', "", [("f", {})]),
        (
            MISTRAL,
            '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x": []}}]',
            "",
            [("f", {}), ("g", {"x": []})],
        ),
        (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": {"b": 2}}', "", [("f", {"a": {"b": 2}})]),
        (FORCED, '{"name": "g", "arguments": {"a": null}}', "", [("g", {"a": None})]),
        (ANY, "a < b <tool", "a < b <tool", []),
        (HERMES, '<tool_call>{"name": "f", "arg', '<tool_call>{"name": "f", "arg', []),
        (HERMES, '<tool_call>{"name": "f", "arguments": {}}', "", [("f", {})]),
        (
            LLAMA,
            '{"name": "unknown", "parameters": {}} x',
            '{"name": "unknown", "parameters": {}} x',
            [],
        ),
        (LLAMA, '{"a": 1}', '{"a": 1}', []),
        (LLAMA, 'x {"name": "f", "parameters": {}}', 'x {"name": "f", "parameters": {}}', []),
        (HERMES, "  plain", "  plain", []),
    ],
)
def test_calls_are_found_and_text_is_kept(
    form: CallForm, text: str, shown: str, calls: list, size: int
) -> None:
    assert read(form, text, size) == (shown, calls)


def test_without_parallel_calls_the_first_one_counts() -> None:
    text = '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call>'
    assert read(HERMES, text, 5, parallel=False) == ("", [("f", {})])


@pytest.mark.parametrize("text", ["{" * 100_000, "[" * 100_000, '[{"a":' * 50_000])
def test_hostile_nesting_is_text(text: str) -> None:
    assert read(LLAMA, text, 20_000) == (text, [])


def test_the_form_comes_from_the_template() -> None:
    assert form_of("... <tool_call> {{ x }}") is HERMES
    assert form_of("... [TOOL_CALLS] ...") is MISTRAL
    assert form_of("... <|python_tag|> ...") is LLAMA
    assert form_of("{{ tools }}") is ANY
