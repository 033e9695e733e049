"""How the memory of the KV caches is divided between the models of a server."""

from __future__ import annotations

from collections.abc import Sequence


def kv_shares(total_bytes: int, token_bytes: Sequence[int]) -> list[int]:
    """Bytes of each model's KV cache, out of `total_bytes`.

    token_bytes: what one token takes in each, over all layers that the server holds. Shares are in
    proportion to that, so every model has room for about the same number of tokens. Source: ours.
    """
    if len(token_bytes) == 1:
        return [total_bytes]
    whole = sum(token_bytes)
    if not whole:  # every server's part is the head alone
        return [total_bytes // len(token_bytes)] * len(token_bytes)
    return [total_bytes * one // whole for one in token_bytes]
