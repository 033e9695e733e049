"""The API in a thread of this process, for as long as a `with` block lasts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edge.api.server import ApiConfig, ApiServer
from edge.client import EdgeClient


@contextmanager
def running_api(client: EdgeClient, config: ApiConfig) -> Iterator[str]:
    """Yields the base URL without a slash at its end."""
    server = ApiServer(client, config)
    ready = threading.Event()
    ports: list[int] = []

    def bound(port: int) -> None:
        ports.append(port)
        ready.set()

    thread = threading.Thread(target=server.run, args=(bound,), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        server.stop()
        thread.join(10)
