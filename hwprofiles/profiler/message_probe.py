"""What the network stack takes for one message and its answer, measured on loopback.

A step's round trip is longer than the link's: protobuf, gRPC, HTTP/2, system calls and the threads
that hand messages over, on both sides. This measures an echo over gRPC between two processes with
the hand-overs of the real ones: a queue and a reader thread on the asking side, asyncio and a
worker thread on the answering one. There are pauses between messages, as long as those between
steps, because threads and caches that have gone to sleep take longer. Run as a module, this file is
the answering process.
"""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from importlib.util import find_spec

from hwprofiles.profiler.timing import PAUSE_S, Timing, timing_of

METHOD = "/splitpoint.probe/Echo"
QUESTION_BYTES, ANSWER_BYTES = 250, 40  # a decode step at 3 bits an element of 576, and its answer
TIMEOUT_S = 10.0
MIN_MESSAGES = 30


def message_s(*, budget_s: float) -> Timing | None:
    """Seconds of one message and its answer between two processes here; None without gRPC."""
    if find_spec("grpc") is None:
        return None
    import grpc

    command = [sys.executable, "-m", "hwprofiles.profiler.message_probe"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        if server.stdin is None or server.stdout is None:
            raise RuntimeError("a process without the pipes it was given")
        try:
            port = int(server.stdout.readline())
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.stream_stream(METHOD, _as_is, _as_is)
                return _measure(call, max(MIN_MESSAGES, int(budget_s / PAUSE_S)))
        finally:
            server.stdin.close()


def _as_is(data: bytes) -> bytes:
    return data


def _measure(call: Callable[[Iterator[bytes]], Iterable[bytes]], count: int) -> Timing:
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def requests() -> Iterator[bytes]:
        while (data := outbox.get()) is not None:
            yield data

    answers = call(requests())

    def read() -> None:
        for data in answers:
            inbox.put(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def exchange_s() -> float:
        time.sleep(PAUSE_S)
        began_s = time.perf_counter()
        outbox.put(bytes(QUESTION_BYTES))
        inbox.get(timeout=TIMEOUT_S)
        return time.perf_counter() - began_s

    try:
        samples = [exchange_s() for _ in range(count + 5)][5:]
    finally:
        outbox.put(None)
        reader.join(TIMEOUT_S)
    return timing_of(samples)


async def _serve() -> None:
    import grpc

    loop = asyncio.get_running_loop()
    work: queue.SimpleQueue[asyncio.Future[bytes] | None] = queue.SimpleQueue()

    def answer() -> None:
        while (future := work.get()) is not None:
            loop.call_soon_threadsafe(future.set_result, bytes(ANSWER_BYTES))

    threading.Thread(target=answer, daemon=True).start()

    async def echo(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for _ in requests:
            future: asyncio.Future[bytes] = loop.create_future()
            work.put(future)
            yield await future

    server = grpc.aio.server()
    _, service, method = METHOD.split("/")
    handler = grpc.method_handlers_generic_handler(
        service, {method: grpc.stream_stream_rpc_method_handler(echo)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(_serve())
