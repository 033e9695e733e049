"""A grammar's text is bounded before anything reads it."""

from __future__ import annotations

import pytest

from decoding.grammar import MAX_GRAMMAR_BYTES, Grammar


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("yaml", "a", "kind is one of json_object, json_schema, regex, lark"),
        ("regex", "", "needs its text"),
        ("json_object", "{}", "has no text of its own"),
        ("lark", "ü" * (MAX_GRAMMAR_BYTES // 2 + 1), "at most 65536"),
        ("regex", "\ud800", "half a character"),
    ],
)
def test_what_is_no_grammar_is_refused_in_one_line(kind: str, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        Grammar(kind=kind, text=text)
    assert "\n" not in str(caught.value)


def test_text_of_exactly_the_limit_is_taken() -> None:
    assert Grammar(kind="regex", text="a" * MAX_GRAMMAR_BYTES)
