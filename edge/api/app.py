"""The OpenAI-compatible endpoints of one EdgeClient, as a Starlette application.

    POST /v1/chat/completions   POST /v1/completions   GET /v1/models[/ID]   GET /health

As many generations run at once as the client has fronts; a request beyond that is answered with
429 and Retry-After at once, instead of waiting in a queue that nobody sees. A client that hangs up
ends its generation, which frees the cloud's cache. The content type must be JSON: a web page cannot
send that to a loopback address unless the server allows it first. Without a key, the Host header
must name a loopback address.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge.api.access import check_host, check_key
from edge.api.answers import AnswerFormat
from edge.api.errors import ApiError, api_error
from edge.api.requests import ApiRequest, chat_request, completions_request
from edge.api.responses import streamed_response, whole_response
from edge.api.stream import RunningAnswer
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest, CompletionRun

MAX_BODY_BYTES: Final = 4 << 20
Parse = Callable[..., ApiRequest]


def make_app(
    client: EdgeClient,
    *,
    concurrency: int,
    keys: tuple[bytes, ...] = (),
    loopback_only: bool = False,
    default: CompletionRequest | None = None,
) -> Starlette:
    """An ASGI application.

    concurrency: at most the client's own. keys: accepted API keys; empty: none is asked for.
    loopback_only: without keys, answer only requests to a loopback host. default: level, deadline,
    context and drafter of requests that name none.
    """
    api = _Api(client, concurrency, keys, loopback_only, default or CompletionRequest())
    return Starlette(
        routes=[
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/health", api.health),
        ],
        exception_handlers={ApiError: _answer_error, HTTPException: _answer_http_error},
        lifespan=api.lifespan,
    )


class _Api:
    def __init__(
        self,
        client: EdgeClient,
        concurrency: int,
        keys: tuple[bytes, ...],
        loopback_only: bool,
        default: CompletionRequest,
    ) -> None:
        self._client = client
        self._concurrency = concurrency
        self._keys = keys
        self._loopback_only = loopback_only and not keys
        self._default = default
        self._running: set[RunningAnswer] = set()
        self._typical_s = 1.0  # how long an answer takes, for Retry-After
        plan = client.plan
        self._created = int(time.time())
        self._fingerprint = f"{plan.model.sha256[:12]}-split{plan.partition.split}"

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        for answer in tuple(self._running):
            answer.cancel()

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "running": len(self._running)})

    async def models(self, request: Request) -> Response:
        self._check_caller(request)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self._check_caller(request)
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model())

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, chat_request)

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, completions_request)

    async def _answer(self, request: Request, parse: Parse) -> Response:
        self._check_caller(request)
        body = await _json_body(request)
        self._check_model(body.get("model"))
        asked = parse(body, default=self._default)
        try:
            running = self._start(asked)
        except Exception as error:
            raise api_error(error) from error
        answer = AnswerFormat(
            model=self._client.plan.model.id,
            fingerprint=self._fingerprint,
            is_chat=asked.is_chat,
            with_logprobs=asked.completion.sampling.logprobs,
        )
        if asked.stream:
            return await streamed_response(
                request, running, answer, include_usage=asked.include_usage
            )
        return await whole_response(request, running, answer)

    def _start(self, asked: ApiRequest) -> RunningAnswer:
        """Take a slot and start generating. ApiError 429 when none is free."""
        if len(self._running) >= self._concurrency:
            raise ApiError(
                f"{self._concurrency} requests are running already",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=self._typical_s,
            )
        prompt, completion = asked.prompt, asked.completion
        run: CompletionRun
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            run = self._client.start_ids([int(str(item)) for item in prompt], completion)
        else:
            run = self._client.start(prompt, completion)  # type: ignore[arg-type]
        started_s = time.monotonic()

        def ended() -> None:
            self._running.discard(running)
            self._typical_s += 0.2 * (time.monotonic() - started_s - self._typical_s)

        running = RunningAnswer(run, ended)
        self._running.add(running)
        return running

    def _check_caller(self, request: Request) -> None:
        if self._loopback_only:
            check_host(request.headers.get("host"))
        check_key(request.headers.get("authorization"), self._keys)

    def _check_model(self, name: Any) -> None:
        known = self._client.plan.model.id
        if name != known:
            raise ApiError(
                f"the model {name!r} does not exist: this server has {known!r}",
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


async def _json_body(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError("the body must be JSON (Content-Type: application/json)", status=415)
    data = bytearray()
    async for block in request.stream():
        data += block
        if len(data) > MAX_BODY_BYTES:
            raise ApiError(f"a body of more than {MAX_BODY_BYTES} bytes", status=413)
    try:
        body = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    return body


async def _answer_error(request: Request, error: Exception) -> Response:
    known = api_error(error)
    return JSONResponse(known.body, status_code=known.status, headers=known.headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, no such method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}"
    return await _answer_error(request, ApiError(detail, status=status))
