"""HTTP responses of one running answer: one JSON body, or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edge.api.answers import AnswerFormat, Choice
from edge.api.choices import ChoiceReader
from edge.api.errors import ApiError, api_error
from edge.api.logprobs import PromptEcho
from edge.api.page.live import LiveFigures
from edge.api.runs import AnswerRuns, RunEvent
from edge.api.stream import RunningAnswer
from edge.generation.completion import TextPiece

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPlan:
    """What one request's answers are made with: the choices' readers and echoes, in order."""

    format: AnswerFormat
    readers: Sequence[ChoiceReader]
    echoes: Sequence[PromptEcho | None]


async def whole_response(
    request: Request, running: RunningAnswer[RunEvent], runs: AnswerRuns, plan: AnswerPlan
) -> Response:
    """All answers in one body, once they have ended.

    A client that hangs up ends the generation. Raises ApiError when the generation fails.
    """

    pieces: list[list[TextPiece]] = [[] for _ in runs.runs]

    async def collect() -> None:
        async for event in running.pieces():
            if event.piece is not None:
                pieces[event.choice].append(event.piece)

    work = asyncio.ensure_future(collect())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)  # nobody reads it
        work.result()
        choices = [_choice(index, runs, plan, told) for index, told in enumerate(pieces)]
        return JSONResponse(plan.format.whole(choices))
    except Exception as error:
        raise api_error(error) from error
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            running.cancel()


def _choice(index: int, runs: AnswerRuns, plan: AnswerPlan, pieces: Sequence[TextPiece]) -> Choice:
    """A choice that has ended. ApiError when its server was lost."""
    completion = runs.completion(index)
    if completion.finish_reason == "server_lost":
        raise ApiError(
            f"the cloud server was lost after {len(completion.token_ids)} tokens: "
            f"{completion.finish_detail}",
            status=503,
            kind="server_error",
            code="server_lost",
        )
    reader = plan.readers[index]
    deltas = [*map(reader.push, pieces), reader.end(completion.text)]
    return Choice(
        completion=completion,
        text="".join(delta.text for delta in deltas),
        pieces=pieces,
        calls=[call for delta in deltas for call in delta.calls],
        echo=plan.echoes[index],
    )


async def streamed_response(
    request: Request,
    running: RunningAnswer[RunEvent],
    runs: AnswerRuns,
    plan: AnswerPlan,
    *,
    include_usage: bool,
    live: LiveFigures | None = None,
) -> Response:
    """The answers as server-sent events. An error before the first token is an HTTP error.

    include_usage: a last chunk has the token counts. live: adds its figures to every chunk.
    """
    told = running.pieces()

    async def begin() -> RunEvent | None:
        return await anext(told, None)

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
        try:
            async for event in _events(runs, plan, first, told):
                yield _sse(event if live is None else live.added_to(event))
            if include_usage:
                completions = [run.completion for run in runs.runs]
                yield _sse(plan.format.usage_chunk(completions))
        except Exception as error:
            logger.warning("an answer broke off: %s", error)
            yield _sse(api_error(error).body)
        yield "data: [DONE]\n\n"

    return _Events(events(), running)


class _Events(StreamingResponse):
    """The events of one answer. However they end, even before the first: so does the answer."""

    def __init__(self, events: AsyncIterator[str], running: RunningAnswer[RunEvent]) -> None:
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
    runs: AnswerRuns,
    plan: AnswerPlan,
    first: RunEvent | None,
    rest: AsyncIterator[RunEvent],
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of all choices, one choice after another. Raises what breaks them off."""
    answer = plan.format
    begun = -1
    event = first
    while event is not None:
        index, piece = event
        reader, echo = plan.readers[index], plan.echoes[index]
        offset = 0 if echo is None else len(echo.text)
        if index > begun:
            begun = index
            if (opening := answer.first_chunk(index)) is not None:
                yield opening
            if echo is not None:
                yield answer.echo_chunk(index, echo, runs.runs[index].prompt_logprobs)
        if piece is not None:
            delta = reader.push(piece)
            if not delta.is_empty:
                yield answer.chunk(index, delta, offset)
        else:
            completion = runs.completion(index)
            delta = reader.end(completion.text)
            if not delta.is_empty or (delta.pieces and answer.with_logprobs):
                yield answer.chunk(index, delta, offset)
            if completion.finish_reason == "server_lost":
                raise ApiError(
                    completion.finish_detail, status=503, kind="server_error", code="server_lost"
                )
            yield answer.last_chunk(completion, index, has_calls=reader.has_calls)
        event = await anext(rest, None)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _sse(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event)}\n\n"
