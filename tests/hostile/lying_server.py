"""A real gRPC server on a port of its own that answers as a test scripts it, honestly or not.

A script is a generator: it gets the Open and the stream of further messages of an edge, and yields
messages in bytes. `honest` is the script of a server that keeps to the protocol, without a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

from protos import split_inference_pb2 as pb
from protos import wire
from protos.messages import Frame, Open, Opened

TOKEN = 5
Script: TypeAlias = Callable[[Open, Iterator[Frame], Any], Iterator[bytes]]


def opened(request: Open) -> bytes:
    return wire.encode_cloud(Opened(session_id=request.session_id, max_frame_tokens=64))


def true_result(frame: Frame) -> pb.Result:
    """What an honest server of one token says; a test makes it a lie before it sends it."""
    end = frame.first_position + len(frame.token_ids) - frame.num_drafts
    result = pb.Result(sequence=frame.sequence, num_tokens=end)
    if frame.want_token and not frame.ahead:
        result.token_ids.append(TOKEN)
        result.logprobs.append(-0.5)
    else:
        result.num_tokens = end + frame.num_drafts
    return result


def message(result: pb.Result) -> bytes:
    return pb.CloudMessage(result=result).SerializeToString()


def honest(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
    yield opened(request)
    for frame in frames:
        yield message(true_result(frame))


def lying(lie: Callable[[pb.Result], object], *, about_tokens: bool = True) -> Script:
    """Honest but for one kind of answer, which `lie` changes: those with tokens, or the others."""

    def script(request: Open, frames: Iterator[Frame], context: Any) -> Iterator[bytes]:
        yield opened(request)
        for frame in frames:
            result = true_result(frame)
            if bool(result.token_ids) is about_tokens:
                lie(result)
            yield message(result)

    return script


@dataclass
class LyingServer:
    """`num_sessions`: streams that opened, of all clients."""

    script: Script
    port: int = 0
    num_sessions: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def generate(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        request = wire.decode_edge(next(requests))
        if not isinstance(request, Open):
            raise TypeError("a stream begins with Open")
        with self.lock:
            self.num_sessions += 1

        def frames() -> Iterator[Frame]:
            for data in requests:
                frame = wire.decode_edge(data)
                if not isinstance(frame, Frame):
                    return
                yield frame

        yield from self.script(request, frames(), context)


@contextmanager
def lying_server(
    script: Script,
    *,
    describe: Callable[[bytes, Any], bytes] | None = None,
    probe: Callable[[Iterator[bytes], Any], Iterator[bytes]] | None = None,
) -> Iterator[LyingServer]:
    served = LyingServer(script)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Generate": grpc.stream_stream_rpc_method_handler(served.generate)
    }
    if describe is not None:
        handlers["Describe"] = grpc.unary_unary_rpc_method_handler(describe)
    if probe is not None:
        handlers["Probe"] = grpc.stream_stream_rpc_method_handler(probe)
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(wire.SERVICE_NAME, handlers),)
        )
        served.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield served
        finally:
            server.stop(0).wait()
