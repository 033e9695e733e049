"""What a request may say of its context: a policy, and how many tokens stay cached under it."""

from __future__ import annotations

from typing import Final

from decoding.params import whole_in
from edge.errors import InputError
from optimizer.errors import PolicyError
from optimizer.policy.kv.registry import kv_policy

MIN_CONTEXT_TOKENS: Final = 16
MAX_CONTEXT_TOKENS: Final = (1 << 31) - 1


def check_context_terms(name: str, num_tokens: int | None) -> None:
    """InputError for a policy that there is not, and for a number of tokens that it has no use for.

    num_tokens: None, as many as the plan's cache holds.
    """
    try:
        policy = kv_policy(name)
        if num_tokens is not None:
            whole_in("context tokens", num_tokens, MIN_CONTEXT_TOKENS, MAX_CONTEXT_TOKENS)
    except (PolicyError, ValueError) as error:
        raise InputError(str(error)) from error
    if num_tokens is not None and not policy.evicts:
        raise InputError(
            f"{num_tokens} context tokens with context {name}, which keeps all: take shift, "
            "recent or entropy"
        )
