"""Serve the status page while a server runs, if its configuration asks for one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from cloud.engine.back_engine import BackEngine
from cloud.server.assembly import ServerParts
from cloud.server.config import ServerConfig
from cloud.server.status.page import StatusEndpoint
from cloud.server.status.snapshot import StatusBoard


def status_facts(config: ServerConfig, engine: BackEngine, model_id: str) -> Mapping[str, Any]:
    """What the page shows and what never changes while the server runs."""
    return {
        "model": model_id,
        "device": str(engine.model.device),
        "first_layer": engine.first_layer,
        "num_layers": engine.num_layers,
        "max_sessions": config.max_sessions,
    }


@contextlib.asynccontextmanager
async def serving_status(
    parts: ServerParts, config: ServerConfig, facts: Mapping[str, Any]
) -> AsyncIterator[StatusEndpoint | None]:
    """Answer while the context lasts. StartError where it cannot listen."""
    if config.status_port is None:
        yield None
        return
    board = StatusBoard(
        metrics=parts.metrics,
        lifecycle=parts.lifecycle,
        conversations=parts.conversations,
        tenants=parts.tenants,
        facts=facts,
    )
    endpoint = StatusEndpoint(board, config.status_host, config.status_port)
    updates = asyncio.create_task(board.run())
    try:
        yield endpoint
    finally:
        updates.cancel()
        endpoint.stop()
