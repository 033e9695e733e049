"""The names of the gRPC metadata that both sides read: lower-case keys, text values."""

from __future__ import annotations

from typing import Final

# Request: `Bearer TOKEN`.
AUTHORIZATION_KEY: Final = "authorization"
# Request: the trace that a call belongs to, https://www.w3.org/TR/trace-context/.
TRACEPARENT_KEY: Final = "traceparent"
# Trailer of RESOURCE_EXHAUSTED: seconds after which to ask again, as a decimal number.
RETRY_AFTER_KEY: Final = "retry-after-s"
