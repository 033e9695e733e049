"""HTTP responses of one running answer: one JSON body, or a stream of its pieces."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edge.api.choices import ChoiceReader
from edge.api.errors import ApiError, api_error
from edge.api.logprobs import PromptEcho
from edge.api.page.live import LiveFigures
from edge.api.runs import AnswerRuns, RunEvent
from edge.api.shape import AnswerShape, Choice
from edge.api.stream import RunningAnswer
from edge.generation.completion import TextPiece
from edge.generation.report import Completion

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPlan:
    """What one request's answers are made with: the choices' readers and echoes, in order."""

    shape: AnswerShape
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
        return JSONResponse(plan.shape.whole(choices))
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
    _check_not_lost(completion)
    reader = plan.readers[index]
    deltas = [*map(reader.push, pieces), reader.end(completion.text)]
    return Choice(
        completion=completion,
        text="".join(delta.text for delta in deltas),
        pieces=pieces,
        calls=[call for delta in deltas for call in delta.calls],
        echo=plan.echoes[index],
    )


def _check_not_lost(completion: Completion) -> None:
    if completion.finish_reason == "server_lost":
        raise ApiError(
            f"the cloud server was lost after {len(completion.token_ids)} tokens: "
            f"{completion.finish_detail}",
            status=503,
            kind="server_error",
            code="server_lost",
        )


async def streamed_response(
    request: Request,
    running: RunningAnswer[RunEvent],
    runs: AnswerRuns,
    plan: AnswerPlan,
    *,
    live: LiveFigures | None = None,
) -> Response:
    """The answers as they come. An error before the first token is an HTTP error.

    live: adds its figures to every object.
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

    shape = plan.shape

    async def events() -> AsyncIterator[str]:
        try:
            async for event in _events(runs, plan, first, told):
                yield shape.encoded(event if live is None else live.added_to(event))
            for event in shape.close([run.completion for run in runs.runs]):
                yield shape.encoded(event)
        except Exception as error:
            logger.warning("an answer broke off: %s", error)
            for event in shape.failed(api_error(error)):
                yield shape.encoded(event)
        if shape.last_text:
            yield shape.last_text

    return _Events(events(), running, media_type=shape.media_type)


class _Events(StreamingResponse):
    """The events of one answer. However they end, even before the first: so does the answer."""

    def __init__(
        self, events: AsyncIterator[str], running: RunningAnswer[RunEvent], *, media_type: str
    ) -> None:
        super().__init__(events, media_type=media_type, headers={"Cache-Control": "no-cache"})
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
    """The objects of all choices, one choice after another. Raises what breaks them off."""
    shape = plan.shape
    begun = -1
    told = first
    while told is not None:
        index, piece = told
        reader, echo = plan.readers[index], plan.echoes[index]
        offset = 0 if echo is None else len(echo.text)
        if index > begun:
            begun = index
            for event in shape.begin(index, echo, runs.runs[index].prompt_logprobs):
                yield event
        completion = runs.completion(index) if piece is None else None
        delta = reader.push(piece) if piece is not None else reader.end(runs.completion(index).text)
        for event in shape.go_on(index, delta, offset):
            yield event
        if completion is not None:
            _check_not_lost(completion)
            for event in shape.end(index, completion, has_calls=reader.has_calls):
                yield event
        told = await anext(rest, None)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
