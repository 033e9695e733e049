"""The names of the gRPC metadata that both sides read: lower-case keys, text values."""

from __future__ import annotations

from typing import Final

# Request: `Bearer TOKEN`.
AUTHORIZATION_KEY: Final = "authorization"
# Request: the trace that a call belongs to, https://www.w3.org/TR/trace-context/.
TRACEPARENT_KEY: Final = "traceparent"
# Trailer of RESOURCE_EXHAUSTED: seconds after which to ask again, as a decimal number.
RETRY_AFTER_KEY: Final = "retry-after-s"
# Request: a hash of the session's id, for a load balancer. An Open that continues another session
# names that one, because the server that holds it can go on.
SESSION_KEY: Final = "x-session-id"
# Request: a hash of the prompt's first block, for a load balancer.
PREFIX_KEY: Final = "x-prefix-hash"
# Answer: which of several servers behind one address speaks, or which one to go to after a
# refusal. Request: the one that the client was told last.
REPLICA_KEY: Final = "x-replica"
# Request: for whom a proxy speaks, as the last of the addresses in it.
FORWARDED_FOR_KEY: Final = "x-forwarded-for"
