"""What can go wrong with a grammar, each in one line for whoever asked for it."""

from __future__ import annotations


class GrammarError(ValueError):
    """A grammar that cannot be read, costs too much, or does not fit the answer so far."""


class GrammarLibraryError(GrammarError):
    """The library or the tokenizer that grammars need is not here."""
