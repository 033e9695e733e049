"""HTTP responses of one running answer: one JSON body, or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edge.api.answers import AnswerFormat
from edge.api.errors import ApiError, api_error
from edge.api.page.live import LiveFigures
from edge.api.stream import RunningAnswer
from edge.generation.completion import TextPiece

logger = logging.getLogger(__name__)


async def whole_response(
    request: Request, running: RunningAnswer, answer: AnswerFormat
) -> Response:
    """The whole answer in one body, once it has ended.

    A client that hangs up ends the generation. Raises ApiError when the generation fails.
    """

    pieces: list[TextPiece] = []

    async def collect() -> None:
        async for piece in running.pieces():
            pieces.append(piece)

    work = asyncio.ensure_future(collect())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)  # nobody reads it
        work.result()
    except Exception as error:
        raise api_error(error) from error
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            running.cancel()
    completion = running.run.completion
    if completion.finish_reason == "server_lost":
        raise ApiError(
            f"the cloud server was lost after {len(completion.token_ids)} tokens: "
            f"{completion.finish_detail}",
            status=503,
            kind="server_error",
            code="server_lost",
        )
    return JSONResponse(answer.whole(completion, pieces))


async def streamed_response(
    request: Request,
    running: RunningAnswer,
    answer: AnswerFormat,
    *,
    include_usage: bool,
    live: LiveFigures | None = None,
) -> Response:
    """The answer as server-sent events. An error before the first token is an HTTP error.

    include_usage: a last chunk has the token counts. live: adds its figures to every chunk.
    """
    pieces = running.pieces()

    async def begin() -> TextPiece | None:
        return await anext(pieces, None)

    beginning = asyncio.ensure_future(begin())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({beginning, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not beginning.done():
            return Response(status_code=499)  # nobody reads it
        first = beginning.result()
    except Exception as error:
        raise api_error(error) from error
    finally:
        gone.cancel()
        if not beginning.done():
            beginning.cancel()
            running.cancel()

    async def events() -> AsyncIterator[str]:
        async for event in _events(running, answer, first, pieces):
            yield _sse(event if live is None else live.added_to(event))
        if include_usage:
            yield _sse(answer.usage_chunk(running.run.completion))
        yield "data: [DONE]\n\n"

    return _Events(events(), running)


class _Events(StreamingResponse):
    """The events of one answer. However they end, even before the first: so does the answer."""

    def __init__(self, events: AsyncIterator[str], running: RunningAnswer) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.cancel()  # a client that went away; nothing to do after the end


async def _events(
    running: RunningAnswer,
    answer: AnswerFormat,
    first: TextPiece | None,
    rest: AsyncIterator[TextPiece],
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of one answer; an error of its own kind when it breaks off."""
    opening = answer.first_chunk()
    if opening is not None:
        yield opening
    num_chars = 0
    waiting: list[TextPiece] = []  # tokens whose text is held back
    piece = first
    try:
        while piece is not None:
            waiting.append(piece)
            if piece.text:
                yield answer.chunk(piece.text, waiting)
                num_chars += len(piece.text)
                waiting = []
            piece = await anext(rest, None)
    except Exception as error:
        logger.warning("an answer broke off: %s", error)
        yield api_error(error).body
        return
    completion = running.run.completion
    left = completion.text[num_chars:]
    if left or (waiting and answer.with_logprobs):
        yield answer.chunk(left, waiting)
    if completion.finish_reason == "server_lost":
        yield api_error(
            ApiError(completion.finish_detail, status=503, kind="server_error", code="server_lost")
        ).body
        return
    yield answer.last_chunk(completion)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _sse(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event)}\n\n"
