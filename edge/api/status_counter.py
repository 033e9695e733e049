"""Counts requests by the status that they were answered with, as an ASGI middleware."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.api.figures import ApiFigures


class StatusCounter:
    """Passes everything on and looks at the status."""

    def __init__(self, app: ASGIApp, figures: ApiFigures) -> None:
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._figures.answered(int(message["status"]))
            await send(message)

        await self._app(scope, receive, noted)
