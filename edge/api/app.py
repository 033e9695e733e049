"""The OpenAI-compatible endpoints of one EdgeClient, as a Starlette application.

    POST /v1/chat/completions   POST /v1/completions   POST /v1/responses   GET /v1/models[/ID]
    GET / and /page/FILE (see `edge.api.page`)   GET /v1/splitpoint/status   GET /metrics
    GET /health   and Ollama's (see `edge.api.ollama`)

As many generations run at once as the client has fronts, and as many requests may wait as `slots`
has room for. A request beyond that is answered with 429 and Retry-After before its body is read.
Bodies are parsed and prompts tokenized in threads, one for each front, so that the event loop stays
free. A client that hangs up ends its generation, which frees the cloud's cache. The content type
must be JSON: a web page cannot send that to a loopback address unless the server allows it first.
Ollama's clients need no type, where nothing says that a browser sends the request.
Without a key, the Host header must name a loopback address.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge.api.access import check_host, check_key
from edge.api.bodies import BodyReader, body_limit, parse_body
from edge.api.connection import ConnectionLimits
from edge.api.delivery import streamed_response, whole_response
from edge.api.endpoints import CHAT, COMPLETIONS, RESPONSES, Endpoint
from edge.api.errors import ApiError, api_error, shown, shown_value
from edge.api.fields import name_field
from edge.api.figures import CONTENT_TYPE, ApiFigures
from edge.api.ollama.routes import PREFIX as OLLAMA_PREFIX
from edge.api.ollama.routes import ollama_routes
from edge.api.ollama.shape import error_body
from edge.api.page.live import LiveFigures
from edge.api.page.routes import page_routes
from edge.api.prepare import Prepared, RequestPreparer
from edge.api.runs import AnswerRuns
from edge.api.slots import AnswerSlots
from edge.api.status_counter import StatusCounter
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest

logger = logging.getLogger(__name__)

HUNG_UP: Final = 499  # nginx's status; nobody reads it
# How long the end of the server waits until running answers have told the cloud to free its cache.
END_S: Final = 2.0


def make_app(
    client: EdgeClient,
    slots: AnswerSlots,
    *,
    concurrency: int,
    keys: tuple[bytes, ...] = (),
    loopback_only: bool = False,
    default: CompletionRequest | None = None,
    limits: ConnectionLimits | None = None,
    origins: Sequence[str] = (),
) -> Starlette:
    """An ASGI application.

    slots: of the answers, as many as the client has fronts. concurrency: how many. keys: accepted
    API keys; empty: none is asked for. loopback_only: without keys, answer only requests to a
    loopback host. default: level, deadline, context and drafter of requests that name none.
    limits: None for the defaults. origins: web pages of these may use the API (CORS).
    """
    api = _Api(
        client,
        slots,
        workers=ThreadPoolExecutor(concurrency, thread_name_prefix="api-prompt"),
        keys=keys,
        loopback_only=loopback_only,
        default=default or CompletionRequest(),
        limits=limits or ConnectionLimits(),
    )
    return Starlette(
        routes=[
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/responses", api.responses, methods=["POST"]),
            Route("/v1/embeddings", api.embeddings, methods=["POST"]),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/health", api.health),
            Route("/metrics", api.metrics),
            *ollama_routes(
                client,
                answer=api.answer,
                read_body=api.read_body,
                check_caller=api._check_caller,
            ),
            *page_routes(
                client,
                check_caller=api._check_caller,
                loopback_only=loopback_only and not keys,
                num_running=lambda: slots.num_taken,
                default=default or CompletionRequest(),
            ),
        ],
        exception_handlers={
            ApiError: _answer_error,
            HTTPException: _answer_http_error,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_error,
        },
        lifespan=api.lifespan,
        middleware=_middleware(api.figures, origins),
    )


def _middleware(figures: ApiFigures, origins: Sequence[str]) -> list[Middleware]:
    counted = Middleware(StatusCounter, figures=figures)
    if not origins:
        return [counted]
    allowed = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # clients in a browser tell about themselves in headers of their own
    )
    return [counted, allowed]


class _Api:
    def __init__(
        self,
        client: EdgeClient,
        slots: AnswerSlots,
        *,
        workers: ThreadPoolExecutor,
        keys: tuple[bytes, ...],
        loopback_only: bool,
        default: CompletionRequest,
        limits: ConnectionLimits,
    ) -> None:
        self._client = client
        self._slots = slots
        self._workers = workers
        self._keys = keys
        self._loopback_only = loopback_only and not keys
        self._default = default
        plan = client.plan
        self._bodies = BodyReader(
            max_bytes=body_limit(
                max_prompt_bytes=client.max_prompt_bytes(default.context),
                max_tokens=plan.max_tokens,
            ),
            limit_s=limits.body_s,
        )
        fingerprint = f"{plan.model.sha256[:12]}-split{plan.partition.split}"
        self._preparer = RequestPreparer(client, fingerprint)
        self._created = int(time.time())
        self.figures = ApiFigures(lambda: slots.num_taken, lambda: slots.num_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await self._slots.end_all(END_S)
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def health(self, request: Request) -> Response:
        answers = self._client.server_answers
        server = "unknown" if answers is None else "answers" if answers else "away"
        return JSONResponse({"status": "ok", "running": self._slots.num_taken, "server": server})

    async def metrics(self, request: Request) -> Response:
        self._check_caller(request)
        return Response(self.figures.text(), headers={"content-type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        self._check_caller(request)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self._check_caller(request)
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model())

    async def chat(self, request: Request) -> Response:
        return await self.answer(request, CHAT)

    async def completions(self, request: Request) -> Response:
        return await self.answer(request, COMPLETIONS)

    async def responses(self, request: Request) -> Response:
        return await self.answer(request, RESPONSES)

    async def embeddings(self, request: Request) -> Response:
        self._check_caller(request)
        raise ApiError(
            "this server makes no embeddings: a generating model is split here",
            status=501,
            code="not_supported",
        )

    async def answer(self, request: Request, endpoint: Endpoint) -> Response:
        """Generate what a request asks for."""
        self._check_caller(request)
        self._slots.check()
        data = await self._body_of(request)
        asked, runs, plan = await self._prepared(data, endpoint)
        try:
            if await request.is_disconnected():
                raise ClientDisconnect
            running = self._slots.run(runs, lambda: self._count(runs))
        except BaseException:
            self._slots.free()
            raise
        if asked.stream:
            return await streamed_response(
                request,
                running,
                runs,
                plan,
                live=LiveFigures(runs.runs) if asked.include_splitpoint else None,
            )
        return await whole_response(request, running, runs, plan)

    async def _prepared(self, data: bytes, endpoint: Endpoint) -> Prepared:
        """Take a slot, then parse and tokenize in a thread. The slot is free again on an error."""
        await self._slots.take()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._workers, self._prepare, data, endpoint)
        except BaseException as error:
            self._slots.free()
            if isinstance(error, Exception):
                raise api_error(error) from error
            raise

    async def read_body(self, request: Request) -> dict[str, Any]:
        """The body of a request that generates nothing."""
        self._check_caller(request)
        data = await self._body_of(request)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, self._parsed, data)

    async def _body_of(self, request: Request) -> bytes:
        """Many of Ollama's clients name no type; see `BodyReader.read`."""
        return await self._bodies.read(request, needs_type=not _is_ollamas(request))

    def _parsed(self, data: bytes) -> dict[str, Any]:
        """The body, which names a model: any alias, because there is one."""
        body = parse_body(data)
        if body.get("model") is None:
            raise ApiError(
                f"model is missing: this server has {self._client.plan.model.id!r}", param="model"
            )
        name_field(body, "model", "")
        return body

    def _prepare(self, data: bytes, endpoint: Endpoint) -> Prepared:
        body = self._parsed(data)
        try:
            asked = endpoint.parse(body, default=self._default)
            return self._preparer.prepare(asked, endpoint.shape)
        except RecursionError as error:  # within what JSON's reader takes
            raise ApiError("the body is nested too deeply") from error

    def _count(self, runs: AnswerRuns) -> None:
        self.figures.completed([run.completion for run in runs.runs if run.has_ended])

    def _check_caller(self, request: Request) -> None:
        if self._loopback_only:
            check_host(request.headers.get("host"))
        check_key(request.headers.get("authorization"), self._keys)

    def _check_model(self, name: Any) -> None:
        known = self._client.plan.model.id
        if name != known:
            raise ApiError(
                f"the model {shown_value(name)} does not exist: this server has {known!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def _model(self) -> dict[str, Any]:
        plan = self._client.plan
        return {
            "id": plan.model.id,
            "object": "model",
            "created": self._created,
            "owned_by": "splitpoint",
            "max_model_len": plan.max_tokens,
        }


async def _answer_error(request: Request, error: Exception) -> Response:
    known = api_error(error)
    body = error_body(known) if _is_ollamas(request) else known.body
    return JSONResponse(body, status_code=known.status, headers=known.headers)


def _is_ollamas(request: Request) -> bool:
    return request.url.path.startswith(OLLAMA_PREFIX)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, no such method."""
    known = error if isinstance(error, HTTPException) else HTTPException(500)
    detail = f"{request.method} {shown(request.url.path)}: {known.detail}"
    return await _answer_error(
        request, ApiError(detail, status=known.status_code, headers=known.headers)
    )


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """The client has hung up before its request was complete."""
    logger.debug("a client hung up: %s", request.client)
    return Response(status_code=HUNG_UP)
