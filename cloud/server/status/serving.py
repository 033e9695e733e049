"""Serve the status page while a server runs, if its configuration asks for one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from cloud.server.assembly import ServerParts
from cloud.server.bundles import bundle_name_of
from cloud.server.config import ServerConfig
from cloud.server.model_parts import ModelParts
from cloud.server.status.page import StatusEndpoint
from cloud.server.status.snapshot import StatusBoard
from optimizer.policy.kv_blocks import KV_BLOCK_TOKENS


def server_facts(config: ServerConfig, parts: ServerParts) -> Mapping[str, Any]:
    """What an operator wants to know once, when the server is ready.

    models: of each model what `model_facts` gives; that of the first stands at the top as well.
    """
    models = tuple(model_facts(one) for one in parts.models)
    return {
        **models[0],
        "max_sessions": config.max_sessions,
        "tls": config.access.tls,
        "client_certificates": config.access.client_ca is not None,
        "offers_files": parts.pulls.offers_files,
        "tenants": tuple(tenant.name for tenant in parts.tenants.holders),
        "models": models,
    }


def model_facts(parts: ModelParts) -> Mapping[str, Any]:
    """What an operator wants to know of one model.

    kv_bytes, kv_tokens: room of its KV cache for sessions that enter at the first layer held.
    kv_sessions: so many of them fit at `max_tokens` each, whatever --max-sessions says.
    draft_head: its form; draft_head_bytes: of its weights and of its keys and values when full.
    bundles: names of those that it serves.
    """
    engine, sessions = parts.loaded.engine, parts.sessions
    shape, pool, head = engine.kv_shape, sessions.pool, sessions.head
    most = sessions.served.max_tokens
    session_bytes = shape.num_bytes(split=engine.first_layer, max_tokens=most)
    layers = max(engine.num_layers - engine.first_layer, 1)
    return {
        "model": parts.name,
        "bundles": tuple(bundle_name_of(one) for one in parts.loaded.bundles.bundles),
        "first_layer": engine.first_layer,
        "num_layers": engine.num_layers,
        "weights_bytes": parts.loaded.weights_bytes,
        "native": engine.is_native,
        "draft_head": None if head is None else head.form,
        "draft_head_bytes": 0 if head is None else head.num_bytes,
        "kv_bytes": pool.limit_bytes,
        "kv_tokens": pool.num_blocks // layers * KV_BLOCK_TOKENS,
        "kv_sessions": pool.limit_bytes // session_bytes if session_bytes else None,
        "max_tokens": most,
    }


def status_facts(config: ServerConfig, parts: ServerParts) -> Mapping[str, Any]:
    """What the page shows and what never changes while the server runs. Layers: of the first."""
    engine = parts.models[0].loaded.engine
    device = str(engine.model.device)
    if config.tensor_parallel > 1:
        device = f"{config.tensor_parallel} x {engine.model.device.type}"
    return {
        "model": ", ".join(one.name for one in parts.models),
        "device": device,
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
