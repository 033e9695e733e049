"""Routes of Ollama's API: the two that generate, and what clients ask about the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge.api.endpoints import Endpoint
from edge.api.errors import ApiError
from edge.api.ollama.request import ollama_chat, ollama_generate
from edge.api.ollama.shape import OllamaShape, timestamp
from edge.client import EdgeClient

PREFIX: Final = "/api/"  # errors below it have Ollama's form
UNKNOWN_VERSION: Final = "0.0.0"

ChecksCaller = Callable[[Request], None]
ReadsBody = Callable[[Request], Awaitable[Mapping[str, Any]]]
Answers = Callable[[Request, Endpoint], Awaitable[Response]]


def ollama_routes(
    client: EdgeClient, *, answer: Answers, read_body: ReadsBody, check_caller: ChecksCaller
) -> list[Route]:
    """The routes. answer: generates. read_body: a checked caller's body, which names a model.

    check_caller: raises ApiError for a caller without a valid key.
    """
    since = timestamp(datetime.now(timezone.utc))
    chat = Endpoint(parse=ollama_chat, shape=partial(OllamaShape, is_chat=True))
    generate = Endpoint(
        parse=partial(ollama_generate, has_template=client.tokenizer.has_template),
        shape=partial(OllamaShape, is_chat=False),
    )

    async def chatting(request: Request) -> Response:
        return await answer(request, chat)

    async def generating(request: Request) -> Response:
        return await answer(request, generate)

    async def tags(request: Request) -> Response:
        check_caller(request)
        return JSONResponse({"models": [_listed(client, since)]})

    async def show(request: Request) -> Response:
        await read_body(request)
        return JSONResponse(_described(client, since))

    async def told_version(request: Request) -> Response:
        check_caller(request)
        return JSONResponse({"version": _version()})

    async def embedding(request: Request) -> Response:
        check_caller(request)
        raise ApiError("this server makes no embeddings: a generating model is split", status=501)

    return [
        Route(f"{PREFIX}chat", chatting, methods=["POST"]),
        Route(f"{PREFIX}generate", generating, methods=["POST"]),
        Route(f"{PREFIX}tags", tags),
        Route(f"{PREFIX}show", show, methods=["POST"]),
        Route(f"{PREFIX}version", told_version),
        Route(f"{PREFIX}embed", embedding, methods=["POST"]),
        Route(f"{PREFIX}embeddings", embedding, methods=["POST"]),
    ]


def _listed(client: EdgeClient, since: str) -> dict[str, Any]:
    model = client.plan.model
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": since,
        "digest": model.sha256,
        "details": _details(client),
    }


def _details(client: EdgeClient) -> dict[str, Any]:
    plan = client.plan
    family = plan.model.geometry.architecture
    bits = plan.partition
    return {
        "format": "splitpoint",
        "family": family,
        "families": [family],
        "quantization_level": f"{bits.front_bits} and {bits.back_bits} bits",
    }


def _described(client: EdgeClient, since: str) -> dict[str, Any]:
    """What the client needs to know of the model before it asks."""
    plan, geometry, tokenizer = client.plan, client.plan.model.geometry, client.tokenizer
    family = geometry.architecture
    return {
        "modified_at": since,
        "template": tokenizer.template,
        "details": _details(client),
        "model_info": {
            "general.architecture": family,
            f"{family}.context_length": plan.max_tokens,
            f"{family}.block_count": geometry.num_layers,
            f"{family}.embedding_length": geometry.hidden_size,
            f"{family}.vocab_size": geometry.vocab_size,
        },
        "capabilities": ["completion", *(["tools"] if tokenizer.knows_tools else [])],
    }


def _version() -> str:
    try:
        return version("splitpoint")
    except PackageNotFoundError:  # run from a folder that is not installed
        return UNKNOWN_VERSION
