"""`EmulatedLink`: a shaped TCP link inside this process, for tests, demos and fault injection.

with EmulatedLink(target=("127.0.0.1", port), shape=LinkShape.fixed(...)) as link:
    connect(link.address)     # the target, as seen across the link
    link.pause()              # an outage; nothing is lost
    link.resume()
    link.drop_connections()   # both ends see a reset
    link.retarget(other)      # where new connections go
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from hwprofiles.emulator.event_loop import precise_event_loop
from hwprofiles.emulator.relay import Counters, Relay
from hwprofiles.emulator.sockets import Address
from hwprofiles.errors import EmulatorError
from hwprofiles.links.shape import LinkShape

T = TypeVar("T")


class EmulatedLink:
    """A relay in a thread of its own. Every method may be called from any thread, and has taken
    effect when it returns.

    Raises EmulatorError: the address cannot be bound; a method is called outside the `with`.
    """

    def __init__(
        self, *, target: Address, shape: LinkShape, listen: Address = ("127.0.0.1", 0)
    ) -> None:
        self._target, self._shape, self._listen = target, shape, listen
        self._loop: asyncio.SelectorEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._relay: Relay | None = None
        self._address: Address | None = None

    def __enter__(self) -> EmulatedLink:
        if self._loop is not None:
            raise EmulatorError("this link is running already")
        self._loop = precise_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="emulated-link", daemon=True
        )
        self._thread.start()
        try:
            self._address = self._run(self._start())
        except OSError as error:
            self._stop_loop()
            raise EmulatorError(
                f"cannot listen on {self._listen[0]}:{self._listen[1]}: {error}"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        relay = self._running()
        self._run(self._close(relay))
        self._relay = self._address = None
        self._stop_loop()

    @property
    def address(self) -> Address:
        """Where to connect instead of to the target."""
        if self._address is None:
            raise EmulatorError("the link is not running")
        return self._address

    def set_shape(self, shape: LinkShape) -> None:
        """Change the link now; its schedules and traces start at their beginning."""
        relay = self._running()
        self._call(lambda: relay.set_shape(shape))

    def pause(self) -> None:
        """Begin an outage in both directions; what is already travelling arrives."""
        self._call(self._running().pause)

    def resume(self) -> None:
        """End the outage; what waited goes on, nothing is lost."""
        self._call(self._running().resume)

    def drop_connections(self) -> int:
        """Reset every open connection at both ends; returns how many."""
        return self._call(self._running().drop_connections)

    def retarget(self, target: Address) -> None:
        """Send new connections to `target`; open ones stay where they are."""
        relay = self._running()

        def change() -> None:
            relay.target = target

        self._call(change)

    def counters(self) -> Counters:
        """A snapshot of the counters."""
        return self._call(self._running().counters)

    async def _start(self) -> Address:
        loop = asyncio.get_running_loop()
        self._relay = Relay(loop, target=self._target, shape=self._shape)
        return await self._relay.start(self._listen)

    async def _close(self, relay: Relay) -> None:
        await relay.close()
        await asyncio.get_running_loop().shutdown_default_executor()

    def _running(self) -> Relay:
        if self._relay is None:
            raise EmulatorError("the link is not running")
        return self._relay

    def _call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return self._run(call())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            coroutine.close()
            raise EmulatorError("the link is not running")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _stop_loop(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        self._loop = self._thread = None
