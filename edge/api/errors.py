"""Errors in OpenAI's shape: one object with message, type, param and code, and an HTTP status.

{"error": {"message": "...", "type": "invalid_request_error", "param": "n", "code": null}}
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any, Final

from edge.errors import (
    BusyError,
    ContextLengthError,
    EdgeError,
    InputError,
    MisconfiguredError,
    PeerError,
    RefusedError,
    TransportError,
)

INVALID_REQUEST: Final = "invalid_request_error"
DEFAULT_RETRY_AFTER_S: Final = 1.0
CONTEXT_LENGTH: Final = "context_length_exceeded"
# How a server refuses a schema or grammar (`decoding.matcher`): the client's fault, not its own.
_REFUSED_GRAMMAR: Final = re.compile(
    r"the (json_object|json_schema|regex|lark|grammar)\b.*does not work"
)
MAX_SHOWN_CHARS: Final = 80  # of a client's own words, in an error


def shown(text: str) -> str:
    """A client's own words for an error: not too many, and only what UTF-8 can say."""
    cut = text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
    return cut.encode("utf-8", "replace").decode("utf-8")


def shown_value(value: Any) -> str:
    """A value of a client's body for an error, as Python writes it."""
    return shown(reprlib.repr(value))


class ApiError(EdgeError):
    """A request that ends with an HTTP error.

    `retry_after_s` becomes the Retry-After header. headers: further ones.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self._headers = dict(headers or {})
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that a client gets."""
        error = {
            "message": str(self).encode("utf-8", "replace").decode("utf-8"),
            "type": self.kind,
            "param": None if self.param is None else shown(self.param),
            "code": self.code,
        }
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, at least one, where it says something."""
        headers = dict(self._headers)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(math.ceil(self.retry_after_s), 1))
        return headers


def api_error(error: Exception) -> ApiError:
    """The one place where our errors become HTTP ones."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        code = CONTEXT_LENGTH if isinstance(error, ContextLengthError) else None
        return ApiError(str(error), code=code)
    if isinstance(error, BusyError):
        return ApiError(
            f"the cloud server is full: {error}",
            status=429,
            kind="rate_limit_error",
            code="server_full",
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, RefusedError) and _REFUSED_GRAMMAR.search(str(error)):
        return ApiError(str(error), code="invalid_grammar")
    if isinstance(error, RefusedError):
        return ApiError(
            f"the cloud server refuses this device: {error}",
            status=502,
            kind="server_error",
            code="server_refused",
        )
    if isinstance(error, PeerError | MisconfiguredError):  # asking again brings the same
        return ApiError(
            f"the cloud server cannot be used: {error}",
            status=502,
            kind="server_error",
            code="server_unusable",
        )
    if isinstance(error, TransportError):
        return ApiError(
            f"the cloud server was lost: {error}",
            status=503,
            kind="server_error",
            code="server_lost",
            retry_after_s=DEFAULT_RETRY_AFTER_S,
        )
    return ApiError(str(error), status=500, kind="server_error", code=type(error).__name__)
