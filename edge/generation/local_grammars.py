"""Grammars on a device that holds the whole model: it chooses the tokens, so it masks them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from decoding.errors import GrammarError
from decoding.grammar import Grammar
from decoding.matcher import GrammarMatcher, GrammarTokenizer
from edge.errors import InputError


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
        self._lock = threading.Lock()

    def matcher(self, grammar: Grammar | None) -> GrammarMatcher | None:
        """What masks one answer; None without a grammar. InputError where it cannot be had."""
        if grammar is None:
            return None
        if self._path is None:
            raise InputError("this device has no tokenizer for a grammar")
        try:
            with self._lock:
                if self._tokenizer is None:
                    self._tokenizer = GrammarTokenizer(
                        self._path, self._vocab_size, next(iter(self._end_ids), None)
                    )
            return GrammarMatcher(grammar, self._tokenizer, end_token_ids=self._end_ids)
        except GrammarError as error:
            raise InputError(str(error)) from error
