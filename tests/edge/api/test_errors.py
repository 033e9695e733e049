"""Our errors as HTTP errors: status, kind, and when to come again."""

from __future__ import annotations

import pytest

from edge.api.errors import ApiError, api_error
from edge.errors import (
    BusyError,
    ConnectError,
    ContextLengthError,
    EdgeError,
    FrontError,
    InputError,
    LostError,
    MisconfiguredError,
    PeerError,
    RefusedError,
)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InputError("bad stop"), 400, None),
        (InputError("a template that speaks of tokens"), 400, None),
        (ContextLengthError("too long"), 400, "context_length_exceeded"),
        (BusyError("full", retry_after_s=2.5), 429, "server_full"),
        (RefusedError("another model"), 502, "server_refused"),
        (PeerError("the server broke the protocol"), 502, "server_unusable"),
        (MisconfiguredError("this server speaks TLS"), 502, "server_unusable"),
        (ConnectError("away"), 503, "server_lost"),
        (LostError("cut"), 503, "server_lost"),
        (FrontError("kernel"), 500, "FrontError"),
        (ZeroDivisionError("a fault of ours"), 500, "ZeroDivisionError"),
    ],
)
def test_each_kind_of_error_has_its_status(error: Exception, status: int, code: str | None) -> None:
    known = api_error(error)
    assert (known.status, known.code) == (status, code)
    assert str(error) in known.body["error"]["message"]


def test_an_http_error_stays_as_it_is() -> None:
    error = ApiError("gone", status=404)
    assert api_error(error) is error
    assert isinstance(error, EdgeError)


def test_retry_after_is_whole_seconds_and_at_least_one() -> None:
    assert api_error(BusyError("full", retry_after_s=2.5)).headers == {"Retry-After": "3"}
    assert api_error(BusyError("full", retry_after_s=0.0)).headers == {"Retry-After": "1"}
    assert ApiError("no key", status=401).headers == {"WWW-Authenticate": "Bearer"}
    assert ApiError("bad").headers == {}
