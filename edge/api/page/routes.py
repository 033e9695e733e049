"""Routes of the page: its files, and `GET /v1/splitpoint/status` for what it shows at the start.

The files hold no secret and need no key, because a browser cannot send one when it opens a page.
The page asks the person for the key and sends it with every call. It loads nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge.api.access import check_host
from edge.client import EdgeClient
from edge.generation.completion import AUTO_LEVEL, CompletionRequest

# File names in `static`, with their media types. Nothing else is served.
PAGE_FILES: Final = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **{
        f"{name}.js": "text/javascript; charset=utf-8"
        for name in (
            "main",
            "answer_stream",
            "conversations",
            "elements",
            "figures",
            "markdown",
            "settings",
            "strip",
            "timeline",
        )
    },
}
PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes(
    client: EdgeClient,
    *,
    check_caller: Callable[[Request], None],
    loopback_only: bool,
    num_running: Callable[[], int],
    default: CompletionRequest,
) -> list[Route]:
    """The routes. check_caller: raises ApiError for a caller without a valid key.

    loopback_only: the files too go to loopback hosts only. num_running: answers under way.
    default: what a request gets that names no level and no drafter.
    """
    contents = {name: (files(__package__) / "static" / name).read_bytes() for name in PAGE_FILES}

    async def page_file(request: Request) -> Response:
        if loopback_only:
            check_host(request.headers.get("host"))
        name = request.path_params.get("name", "index.html")
        return Response(contents[name], media_type=PAGE_FILES[name], headers=PAGE_HEADERS)

    async def status(request: Request) -> Response:
        check_caller(request)
        figures = {**described(client, default), "running": num_running()}
        return JSONResponse(figures, headers={"Cache-Control": "no-store"})

    named = [Route(f"/page/{name}", _of(page_file, name)) for name in PAGE_FILES]
    return [Route("/", page_file), *named, Route("/v1/splitpoint/status", status)]


def described(client: EdgeClient, default: CompletionRequest) -> dict[str, Any]:
    """What `GET /v1/splitpoint/status` says of the plan: which side does what, and the choices."""
    plan = client.plan
    return {
        "model": plan.model.id,
        "max_tokens": plan.max_tokens,
        "num_layers": plan.model.geometry.num_layers,
        "hidden_size": plan.model.geometry.hidden_size,
        "split": plan.partition.split,
        "front_bits": plan.partition.front_bits,
        "back_bits": plan.partition.back_bits,
        "edge_is_whole": plan.edge_is_whole,
        "plan_level": plan.level,
        "levels": [AUTO_LEVEL, *client.ladder.names],
        "drafters": list(client.drafter_names),
        "default": {"level": default.level, "draft": default.draft},
    }


def _of(endpoint: Callable[[Request], Any], name: str) -> Callable[[Request], Any]:
    """The endpoint for one file: the name comes from our list, never from the request."""

    async def answer(request: Request) -> Response:
        request.path_params["name"] = name
        response: Response = await endpoint(request)
        return response

    return answer
