"""What a load balancer in front of several servers may know of a session: names, no secrets.

A balancer that hashes on `x-prefix-hash`, or else on `x-session-id`, brings streams with the same
beginning to the same server, and a stream that is opened again back to the server of the first
one. A wrong server costs a replay, never a token. Both values are hashes: a session's id is its
secret, and a proxy may write headers into its log. Ours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Final

from protos.messages import Open
from protos.metadata import REPLICA_KEY
from protos.prefix import begin_chain

_NAME_BYTES: Final = 16
# What a server may be called. Others are not sent on: a balancer compares the name with its own.
_REPLICA_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def session_name(session_id: str) -> str:
    """A name for the session that does not tell its id; 32 hexadecimal digits."""
    return hashlib.sha256(session_id.encode()).hexdigest()[: 2 * _NAME_BYTES]


def prefix_name(request: Open, token_ids: Sequence[int]) -> str:
    """A name for the first tokens of a prompt, such as a block of them; 32 hexadecimal digits.

    It begins with the device's salt like the chains of `protos.prefix`. So the same tokens have
    the same name only where their sessions may share the result.
    """
    text = ",".join(map(str, token_ids)).encode()
    return hashlib.sha256(begin_chain(request) + text).hexdigest()[: 2 * _NAME_BYTES]


def replica_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The server that `metadata` names; empty: none, or no possible name."""
    for key, value in metadata or ():
        if key == REPLICA_KEY and isinstance(value, str) and _REPLICA_NAME.fullmatch(value):
            return value
    return ""


def is_replica_name(text: str) -> bool:
    """Whether a server may be called so."""
    return _REPLICA_NAME.fullmatch(text) is not None
