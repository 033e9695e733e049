"""Text to token ids without keeping Python's lock, so that other threads run meanwhile."""

from __future__ import annotations

from tokenizers import Tokenizer


def token_ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of `text`. `Tokenizer.encode` alone would keep the lock for all of a long text."""
    return tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
