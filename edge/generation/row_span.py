"""A span of rows that the front has to compute: where it begins and what it asks the cloud for."""

from __future__ import annotations

from typing import NamedTuple


class RowSpan(NamedTuple):
    """Rows the front has to compute next: their input tokens and the first one's position.

    The last `num_drafts` tokens are guesses. `want_token`: the answer has to bring tokens.
    `ahead`: the first token is a guess too, of what the outstanding answer ends with. `as_ids`:
    they travel in a token frame, and the cloud computes the rows. `with_kv`: with the ids go their
    keys and values, and the cloud computes nothing.
    """

    first_position: int
    token_ids: tuple[int, ...]
    num_drafts: int
    want_token: bool
    ahead: bool = False
    as_ids: bool = False
    with_kv: bool = False
