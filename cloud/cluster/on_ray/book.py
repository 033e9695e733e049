"""The actor of Ray that holds the book, and the way to it from other processes."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import ray

from cloud.cluster.book import ReplicaBook

BOOK_NAME: Final = "splitpoint-book"
_ASK_S: Final = 1.0


def book() -> Any:
    """The actor that holds the book; made where there is none. Ray starts it again when it dies."""
    options = {"name": BOOK_NAME, "namespace": BOOK_NAME, "get_if_exists": True}
    made = ray.remote(ReplicaBook)
    return made.options(
        **options, lifetime="detached", max_restarts=-1, num_cpus=0, max_concurrency=1
    ).remote()


class BookOfRay:
    """The book from another process. A lost one is looked up anew."""

    def __init__(self) -> None:
        self._actor: Any = book()

    async def ask(self, method: str, *arguments: Any) -> Any:
        """See AskBook."""
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except ray.exceptions.RayActorError:
            self._actor = await asyncio.to_thread(book)
            raise

    def get(self, method: str) -> Any:
        """The same, for a thread of its own."""
        try:
            return ray.get(getattr(self._actor, method).remote(), timeout=_ASK_S)
        except ray.exceptions.RayActorError:
            self._actor = book()
            raise
