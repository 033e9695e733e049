"""Grammars on the tokens of single bytes: what may come, where an answer ends, what it costs."""

from __future__ import annotations

import builtins
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.errors import GrammarError, GrammarLibraryError
from decoding.grammar import Grammar
from decoding.matcher import MAX_CALL_S, GrammarMatcher, GrammarTokenizer
from decoding.penalties import TokenMask, allows
from tests.tiny_models import byte_ids, save_byte_tokenizer

VOCAB, END = 300, 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> GrammarTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_byte_tokenizer(folder)
    return GrammarTokenizer(folder / "tokenizer.json", VOCAB)


def matcher(tokenizer: GrammarTokenizer, kind: str, text: str = "", **changes: Any) -> Any:
    grammar = Grammar(kind=kind, text=text)
    return GrammarMatcher(grammar, tokenizer, end_token_ids=[END], **changes)


def allowed(mask: TokenMask) -> set[int]:
    return {id_ for id_ in range(VOCAB + 40) if allows(mask, id_)}


def test_only_what_the_expression_allows_may_come_and_the_end_where_it_may_end(
    tokenizer: GrammarTokenizer,
) -> None:
    it = matcher(tokenizer, "regex", "ab?")
    a, b = byte_ids("ab")
    assert allowed(it.masks([])[0]) == {a}
    assert allowed(it.masks([a])[0]) == {b, END}
    assert allowed(it.masks([a, b])[0]) == {END}


def test_after_the_end_nothing_but_the_end_may_come(tokenizer: GrammarTokenizer) -> None:
    it = matcher(tokenizer, "regex", "ab?")
    (a,) = byte_ids("a")
    assert allowed(it.masks([a, END])[0]) == {END}
    assert allowed(it.masks([a, END, END])[0]) == {END}
    assert len(it.masks([a], [END, END])) == 3


def test_drafts_are_cut_at_the_first_one_that_the_grammar_forbids(
    tokenizer: GrammarTokenizer,
) -> None:
    it = matcher(tokenizer, "regex", "abc")
    a, b, c = byte_ids("abc")
    masks = it.masks([], [a, b, a, c])
    assert [allowed(mask) for mask in masks] == [{a}, {b}, {c}]


@given(cuts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=12))
def test_the_masks_depend_on_the_answer_and_not_on_what_was_asked_before(
    tokenizer: GrammarTokenizer, cuts: list[tuple[int, int]]
) -> None:
    """Refused drafts, a lost server and a frame that comes again ask in any order."""
    answer = byte_ids('{"a": 12}')
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
    it = matcher(tokenizer, "json_schema", schema)
    for length, num_drafts in cuts:
        got = it.masks(answer[:length], answer[length : length + num_drafts])
        fresh = matcher(tokenizer, "json_schema", schema)
        for index, mask in enumerate(got):
            expected = fresh.masks(answer[: length + index])[0]
            np.testing.assert_array_equal(mask, expected)


def test_an_answer_that_breaks_the_grammar_is_refused(
    tokenizer: GrammarTokenizer,
) -> None:
    it = matcher(tokenizer, "regex", "ab?")
    a, b = byte_ids("ab")
    with pytest.raises(GrammarError, match=f"token {b} does not match the grammar"):
        it.masks([a, b, b])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "((("),
        ("lark", "not a grammar"),
        ("lark", "start: start"),
        ("json_schema", "{"),
        ("json_schema", '{"type": "nothing"}'),
        ("json_schema", '{"items":' * 4000 + "{}" + "}" * 4000),
        ("regex", "(" * 20_000 + "a" + ")" * 20_000),
        ("regex", "(?=look)ahead"),
    ],
)
def test_a_grammar_that_cannot_work_is_refused_in_one_short_line(
    tokenizer: GrammarTokenizer, kind: str, text: str
) -> None:
    with pytest.raises(GrammarError) as caught:
        matcher(tokenizer, kind, text).masks([])
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 250


HOSTILE = {
    "ambiguous": ("lark", 'start: s\ns: s s | s s s | "a" | "a" "a" | '),
    "many states": ("regex", ".*a.{40}"),
    "repeats of repeats": (
        "lark",
        'start: a{1,1000}\na: b{1,1000}\nb: c{1,1000}\nc: "x"{1,1000}',
    ),
    "a large difference": ("lark", "start: A\nA: /(.*x){1,50}/ & ~/.*y.{30}.*/"),
    "multiple of a prime": ("json_schema", '{"type": "integer", "multipleOf": 982451653}'),
    "patterns": (
        "json_schema",
        json.dumps({"properties": {f"k{i}": {"pattern": ".*a.{20}"} for i in range(900)}}),
    ),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_grammar_ends_or_stays_within_its_time(
    tokenizer: GrammarTokenizer, name: str
) -> None:
    """Counted in the library's own calls: each is granted MAX_CALL_S of processor time."""
    kind, text = HOSTILE[name]
    answer: list[int] = []
    rng = np.random.default_rng(1)
    with_error = False
    try:
        it = matcher(tokenizer, kind, text)
        for _ in range(250):
            some = sorted(allowed(it.masks(answer)[0]) - {END})
            if not some:
                break
            answer.append(int(rng.choice(some)))
    except GrammarError:
        with_error = True
    assert with_error or len(answer) == 250


def ticking(step_s: float) -> Any:
    ticks = itertools.count()
    return lambda: next(ticks) * step_s


def test_a_call_that_takes_too_long_ends_the_answer(tokenizer: GrammarTokenizer) -> None:
    it = matcher(tokenizer, "regex", "a*", cpu_s=ticking(2 * MAX_CALL_S))
    with pytest.raises(GrammarError, match="takes too long"):
        it.masks([])


def test_many_drafts_together_have_one_limit(tokenizer: GrammarTokenizer) -> None:
    it = matcher(tokenizer, "regex", "a*", cpu_s=ticking(MAX_CALL_S / 5))
    (a,) = byte_ids("a")
    assert len(it.masks([], [a])) == 2
    with pytest.raises(GrammarError, match="takes too long"):
        it.masks([], [a] * 64)


def test_a_grammar_without_a_token_that_ends_it_is_refused(tokenizer: GrammarTokenizer) -> None:
    with pytest.raises(GrammarError, match="names none"):
        GrammarMatcher(Grammar(kind="json_object"), tokenizer, end_token_ids=[VOCAB])


def test_a_file_that_is_no_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(GrammarLibraryError, match="this model's tokenizer"):
        GrammarTokenizer(tmp_path / "tokenizer.json", VOCAB)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *rest: Any, **named: Any) -> Any:
        if name == "llguidance":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", fake)


@pytest.mark.usefixtures("no_library")
def test_without_the_library_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises(GrammarLibraryError, match="pip install 'llguidance"):
        GrammarTokenizer(tmp_path / "tokenizer.json", VOCAB)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("json_object", ""), ("json_schema", '{"type": "object", "properties": {"a": {}}}')],
)
def test_json_has_one_space_after_a_colon_and_no_other(
    tokenizer: GrammarTokenizer, kind: str, text: str
) -> None:
    it = matcher(tokenizer, kind, text)
    space, line, brace = byte_ids(" \n}")
    begun = byte_ids('{"a":')
    assert not {space, line} & allowed(it.masks([])[0])
    assert allowed(it.masks(byte_ids("{"))[0]) <= {byte_ids('"')[0], brace}
    assert allowed(it.masks(begun)[0]) == {space}
    assert not {space, line} & allowed(it.masks([*begun, space])[0])
