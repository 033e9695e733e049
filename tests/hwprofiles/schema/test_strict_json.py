"""JSON from outside is read with bounds, and every refusal names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import MAX_DEPTH, parse_json, read_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('ab\\"[{'), inner),
    max_leaves=20,
)


@given(VALUES)
def test_honest_values_come_back(value: object) -> None:
    assert parse_json(json.dumps(value).encode(), source="x") == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value).encode(), source="x") == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested deeper"),
        ('{"a":' * (MAX_DEPTH + 1), "nested deeper"),
        ("1" + "0" * 400, "63 bits"),
        ("1" + "0" * 10_000, "63 bits"),
        ("-9223372036854775809", "63 bits"),
        ("1e400", "too large"),
        ("NaN", "NaN is no number"),
        ("[-Infinity]", "no number"),
        ('{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
        ('["\\ud83d"]', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ('"\x01"', "not valid JSON"),
    ],
)
def test_hostile_text_is_one_line_that_names_the_file(text: str, reason: str) -> None:
    with pytest.raises(ProfileError, match=reason) as caught:
        parse_json(text.encode(), source="some.json")
    message = str(caught.value)
    assert message.startswith("some.json: ")
    assert "\n" not in message
    assert len(message) < 300


def test_brackets_inside_texts_do_not_count() -> None:
    text = json.dumps(["[" * 1000, '\\"[', "{"])
    assert parse_json(text.encode(), source="x") == ["[" * 1000, '\\"[', "{"]


def test_files_are_bounded_and_named(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    with pytest.raises(ProfileError, match=r"some\.json: No such file"):
        read_json(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ProfileError, match=r"some\.json: not valid JSON"):
        read_json(path)
    path.write_text('"' + "x" * 2000 + '"')
    with pytest.raises(ProfileError, match="larger than 1 KiB"):
        read_json(path, max_bytes=1024)
