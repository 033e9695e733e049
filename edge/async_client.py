"""EdgeClient for asyncio: pieces of answers as an async iterator, the work in threads.

    async with AsyncEdgeClient("bundle", server="127.0.0.1:50051") as client:
        async for piece in client.stream("The capital of France is"):
            print(piece.text, end="", flush=True)

Leaving the loop early ends the generation, which frees the cloud's cache. So does cancelling the
task.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TextIO

from edge.client import EdgeClient
from edge.device.tokenizer import ChatMessage
from edge.generation.completion import CompletionRequest, CompletionRun, TextPiece
from edge.generation.link_notice import OnLink, unheard
from edge.generation.report import Completion
from edge.net.credentials import Credentials
from hwprofiles.providers.table import AUTO
from optimizer.artifacts.codec_tables import DEFAULT_TABLES
from optimizer.policy.power import FULL_EFFORT, DraftEffort
from optimizer.policy.retry import RetryPolicy

Prompt = str | Sequence[ChatMessage]


class AsyncEdgeClient:
    """See the module's docstring. Takes what EdgeClient takes; loads on entering.

    `concurrency` answers run at once, as there; a further one waits without a thread's help.
    """

    def __init__(
        self,
        bundle: Path | str,
        server: str | Sequence[str] | None = None,
        *,
        credentials: Credentials | None = None,
        concurrency: int = 1,
        threads: int | None = None,
        spinning: bool = False,
        draft_effort: DraftEffort = FULL_EFFORT,
        provider: str = AUTO,
        memory_limit_bytes: int | None = None,
        prefill_chunk: int | None = None,
        draft_model: Path | str | None = None,
        fallback: Path | str | None = None,
        allow_control_tokens: bool = False,
        retry_policy: RetryPolicy | None = None,
        trace: TextIO | None = None,
        share_prefixes: bool = False,
        keep_connected: bool = False,
        on_link: OnLink = unheard,
        tables: str = DEFAULT_TABLES,
        on_finished: Callable[[Completion], None] | None = None,
    ) -> None:
        self._load = partial(
            EdgeClient,
            bundle,
            server,
            credentials=credentials,
            concurrency=concurrency,
            threads=threads,
            spinning=spinning,
            draft_effort=draft_effort,
            provider=provider,
            memory_limit_bytes=memory_limit_bytes,
            prefill_chunk=prefill_chunk,
            draft_model=draft_model,
            fallback=fallback,
            allow_control_tokens=allow_control_tokens,
            retry_policy=retry_policy,
            trace=trace,
            share_prefixes=share_prefixes,
            keep_connected=keep_connected,
            on_link=on_link,
            tables=tables,
            on_finished=on_finished,
        )
        self._client: EdgeClient | None = None
        self._free = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> AsyncEdgeClient:
        """Load the bundle, in a thread. Raises what EdgeClient raises."""
        self._client = await asyncio.to_thread(self._load)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.client.close)

    @property
    def client(self) -> EdgeClient:
        """The client underneath. RuntimeError outside `async with`."""
        if self._client is None:
            raise RuntimeError("use AsyncEdgeClient with 'async with'")
        return self._client

    async def complete(
        self, prompt: Prompt, request: CompletionRequest | None = None
    ) -> Completion:
        """See EdgeClient.complete."""
        async with self._free:
            run = await asyncio.to_thread(self.client.start, prompt, request)
            async with aclosing(_pieces(run)) as pieces:
                async for _ in pieces:
                    pass
        return run.completion

    async def stream(
        self, prompt: Prompt, request: CompletionRequest | None = None
    ) -> AsyncGenerator[TextPiece, None]:
        """Pieces as they come. Raises what EdgeClient.start and its run raise."""
        async with self._free:
            run = await asyncio.to_thread(self.client.start, prompt, request)
            async with aclosing(_pieces(run)) as pieces:
                async for piece in pieces:
                    yield piece


async def _pieces(run: CompletionRun) -> AsyncGenerator[TextPiece, None]:
    """A run's pieces, made in a thread of their own; ends with the thread."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[TextPiece | BaseException | None] = asyncio.Queue()

    def work() -> None:
        last: BaseException | None = None
        try:
            for piece in run:
                loop.call_soon_threadsafe(arrived.put_nowait, piece)
        except BaseException as error:
            last = error
        loop.call_soon_threadsafe(arrived.put_nowait, last)

    thread = threading.Thread(target=work, name="async-answer", daemon=True)
    thread.start()
    try:
        while (item := await arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        run.cancel()
        await asyncio.to_thread(thread.join)
