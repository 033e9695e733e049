"""From a blocking generation in a thread to text pieces in the event loop, with a way to cancel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Generic, Protocol, TypeVar

from edge.errors import EdgeError

T = TypeVar("T")


class CancellableRun(Protocol[T]):  # type: ignore[misc] # results only come out
    """What runs in the thread: results as they come, and a way to end it."""

    def cancel(self) -> None:
        """End soon; from any thread."""

    def __iter__(self) -> Iterator[T]: ...


class RunningAnswer(Generic[T]):
    """One generation in a thread of its own. `cancel` is safe at any time and from any thread.

    on_end is called in the event loop once the thread is done with the front and the stream.
    """

    def __init__(self, run: CancellableRun[T], on_end: Callable[[], None]) -> None:
        self.run = run
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        self._on_end = on_end
        threading.Thread(target=self._work, name="api-answer", daemon=True).start()

    def cancel(self) -> None:
        """End the generation, which frees the cloud's cache: nobody listens any more."""
        self.run.cancel()

    async def pieces(self) -> AsyncIterator[T]:
        """The pieces as they come. Raises what the generation raised."""
        while (item := await self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _work(self) -> None:
        last: Exception | None = None
        try:
            for piece in self.run:
                self._tell(piece)
        except EdgeError as error:
            last = error
        except Exception as error:  # a fault of ours fails this answer; the server goes on
            last = error
        # The end of the answer comes last: a client that has seen it may ask again at once.
        self._call(self._on_end)
        self._tell(last)

    def _tell(self, item: T | Exception | None) -> None:
        self._call(lambda: self._queue.put_nowait(item))

    def _call(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed: the server has stopped, nobody waits
            self.run.cancel()
