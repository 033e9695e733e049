"""Bodies: bounded in bytes and time, strict JSON, and null means absent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from edge.api.bodies import (
    MAX_BODY_BYTES,
    MAX_CONTAINERS,
    BodyReader,
    body_limit,
    parse_body,
)
from edge.api.errors import ApiError

JSON = [(b"content-type", b"application/json")]


def body_of(blocks: Sequence[bytes | None], headers: Sequence[tuple[bytes, bytes]] = JSON) -> Any:
    """A request whose body comes in `blocks`; at None its client hangs up; the last one is awaited
    for ever."""
    left = list(blocks)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        block = left.pop(0)
        if block is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": block, "more_body": block != b""}

    return Request({"type": "http", "method": "POST", "headers": list(headers)}, receive)


def read(request: Request, reader: BodyReader | None = None) -> bytes:
    return asyncio.run((reader or BodyReader(max_bytes=100, limit_s=10.0)).read(request))


def test_a_body_is_its_blocks() -> None:
    assert read(body_of([b"ab", b"cd", b""])) == b"abcd"


def test_a_body_is_cut_off_at_its_limit_whether_it_says_its_length_or_not() -> None:
    for request in (
        body_of([b"x" * 60, b"x" * 60, b""]),
        body_of([], [*JSON, (b"content-length", b"101")]),
    ):
        with pytest.raises(ApiError) as caught:
            read(request)
        assert (caught.value.status, caught.value.code) == (413, "context_length_exceeded")


def test_a_body_that_does_not_come_is_a_408_and_ends_the_connection() -> None:
    with pytest.raises(ApiError) as caught:
        read(body_of([b"x"]), BodyReader(max_bytes=100, limit_s=0.01))
    assert caught.value.status == 408
    assert caught.value.headers == {"Connection": "close"}


def test_all_bodies_on_their_way_share_one_limit_and_give_it_back() -> None:
    async def scene() -> None:
        reader = BodyReader(max_bytes=100, limit_s=10.0, max_held_bytes=150)
        first = asyncio.ensure_future(reader.read(body_of([b"x" * 90])))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            await reader.read(body_of([b"x" * 90, b""]))
        assert caught.value.status == 429
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        with pytest.raises(ClientDisconnect):
            await reader.read(body_of([b"x" * 90, None]))
        assert await reader.read(body_of([b"x" * 90, b""])) == b"x" * 90

    asyncio.run(scene())


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=iso-8859-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_only_utf8_json_as_it_is_is_read(headers: dict[str, str]) -> None:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    with pytest.raises(ApiError) as caught:
        read(body_of([b"{}", b""], encoded))
    assert caught.value.status == 415


FORM = (b"content-type", b"application/x-www-form-urlencoded")


def test_a_program_may_leave_the_type_out_where_no_type_is_needed() -> None:
    for headers in ([], [FORM]):
        request = body_of([b"{}", b""], headers)
        reader = BodyReader(max_bytes=100, limit_s=10.0)
        assert asyncio.run(reader.read(request, needs_type=False)) == b"{}"


@pytest.mark.parametrize(
    "headers",
    [
        [(b"origin", b"https://evil.example")],
        [(b"origin", b"null"), FORM],
        [(b"sec-fetch-site", b"cross-site"), FORM],
        [(b"content-type", b"text/plain")],  # a form of a web page can have it
        [(b"content-type", b"multipart/form-data; boundary=x")],
        [(b"content-encoding", b"gzip")],
    ],
)
def test_a_web_page_names_the_type_always(headers: list[tuple[bytes, bytes]]) -> None:
    reader = BodyReader(max_bytes=100, limit_s=10.0)
    with pytest.raises(ApiError) as caught:
        asyncio.run(reader.read(body_of([b"{}", b""], headers), needs_type=False))
    assert caught.value.status == 415


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=UTF-8"])
def test_json_may_name_its_charset(kind: str) -> None:
    assert read(body_of([b"{}", b""], [(b"content-type", kind.encode())])) == b"{}"


def test_null_means_absent_at_every_depth() -> None:
    body = {"a": None, "b": {"c": None, "d": 1}, "e": [{"f": None}]}
    assert parse_body(json.dumps(body).encode()) == {"b": {"d": 1}, "e": [{}]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"x": {"a": 1, "a": null}}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": "\xc3"}', "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"[]," * MAX_CONTAINERS + b"[]]", "lists and objects"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "not JSON"),
        (b'"text"', "JSON object"),
        (b"", "not JSON"),
    ],
)
def test_json_that_two_readers_could_read_in_two_ways_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ApiError, match=says) as caught:
        parse_body(data)
    assert caught.value.status == 400


def test_a_mark_at_the_beginning_is_no_text() -> None:
    assert parse_body(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_a_body_may_be_as_large_as_its_prompt_needs_and_never_beyond_the_limit() -> None:
    assert body_limit(max_prompt_bytes=1000, max_tokens=10) > 6 * 1000
    assert body_limit(max_prompt_bytes=10, max_tokens=10_000) > len("50000, ") * 10_000
    assert body_limit(max_prompt_bytes=1 << 30, max_tokens=1) == MAX_BODY_BYTES
