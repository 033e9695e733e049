"""Errors in OpenAI's shape: one object with message, type, param and code, and an HTTP status.

{"error": {"message": "...", "type": "invalid_request_error", "param": "n", "code": null}}
"""

from __future__ import annotations

import math
from typing import Any, Final

from edge.errors import (
    BusyError,
    EdgeError,
    InputError,
    RefusedError,
    TransportError,
)

INVALID_REQUEST: Final = "invalid_request_error"
DEFAULT_RETRY_AFTER_S: Final = 1.0


class ApiError(EdgeError):
    """A request that ends with an HTTP error. `retry_after_s` becomes the Retry-After header."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that a client gets."""
        error = {
            "message": str(self),
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, at least one, where it says something."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(math.ceil(self.retry_after_s), 1))
        return headers


def api_error(error: Exception) -> ApiError:
    """The one place where our errors become HTTP ones."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        code = "context_length_exceeded" if "tokens" in str(error) else None
        return ApiError(str(error), code=code)
    if isinstance(error, BusyError):
        return ApiError(
            f"the cloud server is full: {error}",
            status=429,
            kind="rate_limit_error",
            code="server_full",
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, RefusedError):
        return ApiError(
            f"the cloud server refuses this device: {error}",
            status=502,
            kind="server_error",
            code="server_refused",
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
