"""A grammar that would end or stop the process that reads it ends a child process only."""

from __future__ import annotations

import json
import subprocess
import threading
from typing import Any

import pytest

from decoding.errors import GrammarError, GrammarLibraryError
from decoding.grammar import Grammar
from decoding.grammar_trial import STACK_BYTES, submitted, try_grammar, with_stack
from decoding.matcher import GrammarMatcher, byte_tokenizer


def chain(length: int) -> Grammar:
    """Rules that each name the next one: recursion as deep as the chain is long."""
    rules = "".join(f"r{i}: r{i + 1}\n" for i in range(length))
    return Grammar(kind="lark", text=f'start: r0\n{rules}r{length}: "b"')


def test_an_honest_grammar_passes_and_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = Grammar(kind="json_schema", text=json.dumps({"type": "object", "title": "once"}))
    try_grammar(grammar)

    def no_child(*args: Any, **named: Any) -> Any:
        raise AssertionError("it was tried already")

    monkeypatch.setattr(subprocess, "run", no_child)
    try_grammar(grammar)


def test_what_llguidance_says_reaches_the_caller() -> None:
    with pytest.raises(GrammarError, match=r"the regex does not work: .*invalid"):
        try_grammar(Grammar(kind="regex", text="((("))


def test_a_repetition_that_becomes_a_gigabyte_is_refused() -> None:
    with pytest.raises(GrammarError, match=r"too large or too deep|too long"):
        try_grammar(Grammar(kind="regex", text="a{1000000000}"))


def test_the_longest_chain_that_passes_is_read_here_too() -> None:
    """The stack here is larger than the child's; without it this process would end."""
    threads = with_stack(1)
    tokenizer = byte_tokenizer()
    grammar = chain(4500)
    try:
        try_grammar(grammar)
    except GrammarError:
        return
    matcher = submitted(
        threads,
        lambda: GrammarMatcher(grammar, tokenizer, end_token_ids=tokenizer.tokens.eos_tokens),
    ).result()
    assert submitted(threads, matcher.masks, []).result()


def test_a_child_that_dies_refuses_the_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    died = subprocess.CompletedProcess([], returncode=-11, stdout=b"", stderr=b"")
    monkeypatch.setattr(subprocess, "run", lambda *args, **named: died)
    with pytest.raises(GrammarError, match="too large or too deep"):
        try_grammar(Grammar(kind="regex", text="this one dies"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [(subprocess.TimeoutExpired([], 1), GrammarError), (OSError("full"), GrammarLibraryError)],
)
def test_no_answer_from_the_child_is_an_error_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    def fails(*args: Any, **named: Any) -> Any:
        raise error

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(kind):
        try_grammar(Grammar(kind="regex", text=f"never read {kind.__name__}"))


class Panic(BaseException):
    """As PyO3 raises where Rust panics."""


def test_a_panic_of_the_library_arrives_as_an_error_of_the_grammar() -> None:
    def panics() -> None:
        raise Panic

    with pytest.raises(GrammarError, match="library failed \\(Panic\\)"):
        submitted(with_stack(1), panics).result()


def test_threads_for_grammars_change_no_other_threads_stack() -> None:
    before = threading.stack_size()
    pool = with_stack(2)
    assert threading.stack_size() == before != STACK_BYTES
    assert len({submitted(pool, threading.get_ident).result() for _ in range(20)}) <= 2
