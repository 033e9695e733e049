"""Where a pull gets its files from: a server, over the gRPC port of its sessions."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, Final, Protocol

import grpc

from edge.errors import DeadlineError, InputError, PeerError, RefusedError
from edge.net.grpc_transport import GrpcTransport, connect_error, malformed
from protos.bundle_names import bundles_line, is_named
from protos.errors import RemoteWireError
from protos.limits import MAX_BUNDLE_NAME_BYTES
from protos.pull import (
    FETCH_PATH,
    LIST_FILES_PATH,
    FetchRequest,
    FileChunk,
    FileList,
    decode_file_chunk,
    decode_file_list,
    encode_fetch_request,
    encode_list_files_request,
)

LIST_TIMEOUT_S: Final = 20.0
# How long the next chunk may take.
STALL_S: Final = 60.0
_LOOK_S: Final = 1.0


class FileSource(Protocol):
    """A server, as a pull sees it. Both raise a TransportError."""

    @property
    def address(self) -> str:
        """HOST:PORT, for messages."""
        ...

    def list_files(self) -> FileList:
        """The server's manifest."""
        ...

    def fetch(self, request: FetchRequest) -> Iterator[FileChunk]:
        """The chunks of a file, as they come."""
        ...


class GrpcFileSource:
    """See FileSource. The transport stays the caller's to close."""

    def __init__(
        self, transport: GrpcTransport, *, bundle: str = "", stall_s: float = STALL_S
    ) -> None:
        """bundle: which one, where the server has several (`protos.bundle_names`).

        Raises InputError for what cannot be a name.
        """
        if len(bundle.encode()) > MAX_BUNDLE_NAME_BYTES or not bundle.isprintable():
            raise InputError("--model: is no name of a bundle or a model, and no hash")
        self._bundle = bundle
        self._transport = transport
        self._stall_s = stall_s

    @property
    def address(self) -> str:
        """See FileSource."""
        return self._transport.address

    def list_files(self) -> FileList:
        """See FileSource. RefusedError of a server that offers no files, or is too old to.

        PeerError where the list is of another bundle than the one that was named.
        """
        limit_s = min(LIST_TIMEOUT_S, self._stall_s)
        try:
            asked = encode_list_files_request(self._bundle)
            for data in self._messages(LIST_FILES_PATH, asked, limit_s):
                return self._checked(decode_file_list(data))
        except RefusedError as error:
            if _is_unknown(error):
                raise RefusedError(
                    f"{self.address}: this server's version offers no files: copy the bundle to "
                    "the device"
                ) from error
            raise
        except RemoteWireError as error:
            raise malformed(error) from error
        raise PeerError(f"{self.address}: the server sent no list of files")

    def fetch(self, request: FetchRequest) -> Iterator[FileChunk]:
        """See FileSource. DeadlineError where no chunk comes for `STALL_S`."""
        try:
            for data in self._messages(FETCH_PATH, encode_fetch_request(request), self._stall_s):
                yield decode_file_chunk(data)
        except RemoteWireError as error:
            raise malformed(error) from error

    def _checked(self, files: FileList) -> FileList:
        """`files`, which are of the bundle that was named: an old server reads no names."""
        if not self._bundle:
            return files
        if files.bundle is None:
            raise PeerError(
                f"{self.address}: this server's version has one bundle and cannot choose: leave "
                "out --model"
            )
        if not is_named(self._bundle, files.bundle):
            raise PeerError(
                f"{self.address}: the server sent another bundle: {bundles_line([files.bundle])}"
            )
        return files

    def _messages(self, path: str, request: bytes, limit_s: float) -> Iterator[bytes]:
        """What the server answers, message by message; each may take `limit_s`.

        It fails at once where nobody listens: a call that waits for a connection would not.
        """
        call = self._transport.raw_stream(path, iter((request,)))
        with _Watch(call, limit_s) as watch:
            try:
                while (data := watch.next_message()) is not None:
                    yield data
            except grpc.RpcError as error:
                if watch.is_over:
                    raise DeadlineError(f"nothing came for {limit_s:g} s") from error
                known = connect_error(error, self.address)
                raise self._transport.explained(known) from error
            finally:
                call.cancel()


def _is_unknown(error: RefusedError) -> bool:
    call: Any = error.__cause__
    return isinstance(call, grpc.RpcError) and call.code() == grpc.StatusCode.UNIMPLEMENTED


class _Watch:
    """Cancels a call when one wait for its next message takes too long.

    gRPC's blocking iterator knows no time limit of one message.
    """

    def __init__(self, call: Any, limit_s: float) -> None:
        self.is_over = False
        self._call = call
        self._limit_s = limit_s
        self._since_s: float | None = None  # when the wait began that lasts
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pull-watch", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def next_message(self) -> Any:
        """The call's next message, None at its end; watched while it waits."""
        self._since_s = time.monotonic()
        try:
            return next(self._call, None)
        finally:
            self._since_s = None

    def _run(self) -> None:
        while not self._ended.wait(min(_LOOK_S, self._limit_s / 4)):
            since_s = self._since_s
            if since_s is not None and time.monotonic() - since_s > self._limit_s:
                self.is_over = True
                self._call.cancel()
                return
