"""A request's body, within limits of bytes and time, as one JSON object.

Only UTF-8 is read. A key that is there twice, a number that JSON does not know and a body that is
nested too deeply are refused. A key whose value is null counts as absent, at every depth: many
clients send every field that they know.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from email.message import Message
from typing import Any, Final

from starlette.requests import Request

from edge.api.errors import CONTEXT_LENGTH, ApiError, shown

MAX_BODY_BYTES: Final = 4 << 20
MAX_HELD_BYTES: Final = 4 * MAX_BODY_BYTES  # of all bodies that are on their way
MAX_CONTAINERS: Final = 250_000  # lists and objects: each takes memory far beyond its two bytes
# A byte of a prompt may take so many bytes of JSON: \u0000. Its longer characters take fewer each.
FORM: Final = "application/x-www-form-urlencoded"  # curl's type of what -d sends
JSON_BYTES_PER_BYTE: Final = 6
JSON_BYTES_PER_TOKEN_ID: Final = 12
# What a body may have beside its prompt: parameters, stop texts, metadata, the turns' own keys.
OTHER_BYTES: Final = 256 << 10


def body_limit(*, max_prompt_bytes: int, max_tokens: int) -> int:
    """The most bytes that a body needs for a prompt that can be served."""
    text_bytes = JSON_BYTES_PER_BYTE * max_prompt_bytes
    ids_bytes = JSON_BYTES_PER_TOKEN_ID * max_tokens
    return min(max(text_bytes, ids_bytes) + OTHER_BYTES, MAX_BODY_BYTES)


class BodyReader:
    """Reads bodies of at most `max_bytes` bytes, each within `limit_s` seconds.

    Together the bodies that are on their way take at most `max_held_bytes`.
    """

    def __init__(
        self, *, max_bytes: int, limit_s: float, max_held_bytes: int = MAX_HELD_BYTES
    ) -> None:
        self._max_bytes = max_bytes
        self._limit_s = limit_s
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0

    async def read(self, request: Request, *, needs_type: bool = True) -> bytes:
        """The body. ApiError 413, 415, 408 or 429 says why not.

        needs_type: without a JSON content type it is refused, whoever sends it. Otherwise only a
        web page has to name one.
        """
        if needs_type or not _is_no_page(request):
            _check_type(request)
        _check_encoding(request)
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._collect(request), self._limit_s)
        except asyncio.TimeoutError:
            raise ApiError(
                f"the body did not come within {self._limit_s:g} s",
                status=408,
                code="request_timeout",
                headers={"Connection": "close"},
            ) from None

    async def _collect(self, request: Request) -> bytes:
        data = bytearray()
        try:
            async for block in request.stream():
                data += block
                self._held_bytes += len(block)
                if len(data) > self._max_bytes:
                    raise self._too_large()
                if self._held_bytes > self._max_held_bytes:
                    raise ApiError(
                        "too many large requests at once",
                        status=429,
                        kind="rate_limit_error",
                        code="rate_limit_exceeded",
                        retry_after_s=1.0,
                    )
        finally:
            self._held_bytes -= len(data)
        return bytes(data)

    def _too_large(self) -> ApiError:
        return ApiError(
            f"a body of more than {self._max_bytes} bytes: no prompt that long can be served",
            status=413,
            code=CONTEXT_LENGTH,
        )


def parse_body(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, without its nulls. ApiError says what is wrong with it."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ApiError(f"the body is not UTF-8 (byte {error.start})") from error
    if text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise ApiError(f"the body has more than {MAX_CONTAINERS} lists and objects")
    try:
        body = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError as error:
        raise ApiError("the body is nested too deeply") from error
    except ValueError as error:
        raise ApiError(f"the body is not JSON: {shown(str(error))}") from error
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    return body


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ApiError(f"the key {shown(twice)!r} is there twice", param=twice)
    return {name: value for name, value in found.items() if value is not None}


def _no_constant(name: str) -> None:
    raise ApiError(f"the body is not JSON: {name} is no number there")


def _is_no_page(request: Request) -> bool:
    """Whether a body without a JSON type comes from a program and not from a web page.

    A page can post without asking in two ways that carry no such type: a form, whose text is never
    JSON in this encoding, and a script. For a script every browser adds the header Origin.
    """
    kind = request.headers.get("content-type", FORM).partition(";")[0].strip().lower()
    is_of_browser = "origin" in request.headers or "sec-fetch-site" in request.headers
    return kind == FORM and not is_of_browser


def _check_type(request: Request) -> None:
    """ApiError 415 unless the body is JSON in UTF-8."""
    header = Message()
    header["content-type"] = request.headers.get("content-type", "text/plain")
    charset = str(header.get_param("charset", "utf-8")).lower()
    if header.get_content_type() != "application/json" or charset not in ("utf-8", "utf8"):
        raise ApiError("the body must be JSON (Content-Type: application/json)", status=415)


def _check_encoding(request: Request) -> None:
    """ApiError 415 for a compressed body."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ApiError(
            f"Content-Encoding {shown(encoding)}: only bodies that are not compressed are read",
            status=415,
        )
