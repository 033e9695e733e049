"""A whole server on an event loop of its own, in a thread of a process that does other things too.

Ray calls into a replica's process on loops of its own. The server must not wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import threading
from concurrent.futures import Future
from typing import Any, Final

from prometheus_client import generate_latest

from cloud.cluster.book import ReplicaReport, Sight, key_name
from cloud.cluster.together import ASK_TIMEOUT_S, AskBook, Together
from cloud.errors import ServerFailedError
from cloud.server.assembly import ServerParts
from cloud.server.config import ServerConfig
from cloud.server.process import SWITCH_INTERVAL_S, Server, serving
from cloud.server.status.snapshot import StatusBoard
from cloud.sessions.lifecycle import SessionKey, SessionState
from optimizer.policy.replicas import ReplicaLoad

logger = logging.getLogger(__name__)

SHOW_EVERY_S: Final = 2.0
# What the status page shows and what never changes, of a server's facts.
STATUS_FACTS: Final = ("model", "device", "first_layer", "num_layers", "max_sessions")


class ServingThread:
    """Starts at once. config: `replica` names it. ask: the way to the book. bundle: what it serves.

    `ready` ends when it listens, with the error where it cannot start.
    """

    def __init__(self, config: ServerConfig, ask: AskBook, *, bundle: str = "") -> None:
        self.ready: Future[Server] = Future()
        self._config = config
        self._bundle = bundle
        self._ask = ask
        self._together = Together(config.replica, ask)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._drain_s = config.drain_s
        self._thread = threading.Thread(target=self._run, name="serving", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise ServerFailedError where a part of the server has stopped for good."""
        if not self._thread.is_alive():
            raise ServerFailedError("the server's thread has ended")
        if self.ready.done() and self.ready.exception() is None:
            failure = self.ready.result().failure
            if failure.done():
                raise ServerFailedError(failure.result())

    def fullness(self) -> float:
        """See ReplicaLoad; 0 while it loads."""
        if not self.ready.done() or self.ready.exception() is not None:
            return 0.0
        return self._load(self.ready.result()).fullness

    def stop(self) -> None:
        """Drain and end: sessions may go on for `drain_s`, then they are handed back. Waits."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            if not self.ready.done():
                self.ready.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        async with serving(self._config, siblings=self._together) as server:
            gc.collect()
            gc.freeze()
            tasks: list[asyncio.Task[Any]] = [
                asyncio.create_task(
                    self._together.run(
                        lambda: self._report(server), lambda names: _close(server.parts, names)
                    )
                ),
                asyncio.create_task(self._show(server)),
            ]
            self.ready.set_result(server)
            stopped = asyncio.create_task(self._stop.wait())
            ends: set[asyncio.Future[Any]] = {stopped, server.failure, *tasks}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:  # without them nobody knows of this replica: another takes its place
                if task.done():
                    logger.critical("a task of the replica died", exc_info=task.exception())
            if not server.failure.done():
                await server.drain(self._drain_s, until=server.failure)
            for task in (stopped, *tasks):
                task.cancel()
            with contextlib.suppress(Exception):  # a book that is away will forget this replica
                await asyncio.wait_for(self._ask("leave", self._config.replica), ASK_TIMEOUT_S)

    async def _show(self, server: Server) -> None:
        """Send metrics and the status page's snapshot to the book until cancelled."""
        parts = server.parts
        board = StatusBoard(
            metrics=parts.metrics,
            lifecycle=parts.lifecycle,
            conversations=parts.conversations,
            tenants=parts.tenants,
            facts={name: server.facts[name] for name in STATUS_FACTS},
            every_s=SHOW_EVERY_S,
        )
        while True:
            board.tick()
            sight = Sight(generate_latest(parts.metrics.registry).decode(), board.latest)
            try:
                await self._ask("show", self._config.replica, sight)
            except Exception:  # the book is away; `Together` says so
                await asyncio.sleep(SHOW_EVERY_S)
            await asyncio.sleep(SHOW_EVERY_S)

    def _load(self, server: Server) -> ReplicaLoad:
        load = server.admission.load()
        return ReplicaLoad(
            sessions=load.sessions,
            most_sessions=self._config.max_sessions,
            waiting=load.waiting,
            used_blocks=load.total_blocks - load.free_blocks,
            blocks=load.total_blocks,
        )

    def _report(self, server: Server) -> ReplicaReport:
        return ReplicaReport(
            name=self._config.replica,
            host=self._config.host,
            port=server.port,
            serving=not server.admission.draining,
            load=self._load(server),
            tenants=server.admission.tenant_places.counts(),
            resumable={key_name(key): key.tenant for key in _resumable(server.parts)},
            bundle=self._bundle,
        )


def _resumable(parts: ServerParts) -> list[SessionKey]:
    return [life.key for life in parts.lifecycle.in_state(SessionState.RESUMABLE)]


def _close(parts: ServerParts, names: tuple[str, ...]) -> None:
    """End the resumable sessions of these names."""
    for key in _resumable(parts) if names else ():
        held = parts.resumable.take(key) if key_name(key) in names else None
        if held is not None:
            held.close()
