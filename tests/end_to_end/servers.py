"""A cloud server in this process, on a port of its own, for as long as a `with` block lasts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloud.server.process import Server, ServerConfig, serving


class RunningServer:
    """A server whose event loop runs in a thread. `address` is HOST:PORT."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.server: Server

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        async with serving(self._config) as self.server:
            self._ready.set()
            await self._stop.wait()


@contextmanager
def running_server(
    bundle: Path,
    *,
    kv_memory_bytes: int = 1 << 30,
    draft_head: Path | None = None,
    drafts: bool = True,
) -> Iterator[RunningServer]:
    server = RunningServer(
        ServerConfig(
            bundle=bundle,
            port=0,
            kv_memory_bytes=kv_memory_bytes,
            draft_head=draft_head,
            drafts=drafts,
        )
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()
