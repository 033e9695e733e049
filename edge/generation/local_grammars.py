"""Grammars on a device that holds the whole model: it chooses the tokens, so it masks them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from decoding.errors import GrammarError
from decoding.grammar import Grammar
from decoding.grammar_trial import submitted, try_grammar, with_stack
from decoding.matcher import GrammarMatcher, GrammarTokenizer
from decoding.penalties import TokenMask
from edge.errors import InputError


class LocalMatcher:
    """A matcher in a thread with a large stack. `masks` as `GrammarMatcher.masks`."""

    def __init__(self, threads: ThreadPoolExecutor, matcher: GrammarMatcher) -> None:
        self._threads = threads
        self._matcher = matcher

    def masks(self, answer: Sequence[int]) -> list[TokenMask]:
        """The tokens that may come after `answer`. Raises GrammarError."""
        return submitted(self._threads, self._matcher.masks, answer).result()


class LocalGrammars:
    """Makes matchers; the tokenizer is made when the first grammar comes. Safe in any thread.

    tokenizer_path: the bundle's; None: this device takes no grammars.
    """

    def __init__(
        self, tokenizer_path: Path | None, *, vocab_size: int, end_token_ids: Sequence[int]
    ) -> None:
        self._path = tokenizer_path
        self._vocab_size = vocab_size
        self._end_ids = tuple(end_token_ids)
        self._tokenizer: GrammarTokenizer | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def matcher(self, grammar: Grammar | None) -> LocalMatcher | None:
        """What masks one answer; None without a grammar. InputError where it cannot be had."""
        if grammar is None:
            return None
        if self._path is None:
            raise InputError("this device has no tokenizer for a grammar")
        try:
            try_grammar(grammar)
            with self._lock:
                if self._tokenizer is None:
                    self._tokenizer = GrammarTokenizer(
                        self._path, self._vocab_size, next(iter(self._end_ids), None)
                    )
                if self._threads is None:
                    self._threads = with_stack(1)
                tokenizer, threads = self._tokenizer, self._threads
            made = submitted(
                threads, lambda: GrammarMatcher(grammar, tokenizer, end_token_ids=self._end_ids)
            )
            return LocalMatcher(threads, made.result())
        except GrammarError as error:
            raise InputError(str(error)) from error
