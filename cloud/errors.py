"""What can go wrong in the cloud server, and the one place where it becomes a gRPC status.

CloudError
├── StartError           the server cannot start as asked (bundle, options, unsafe bind)
│   └── WeightsError     the back's weights are missing, of the wrong shape or not supported
├── RequestError         the client's fault; only its own stream ends
│   ├── BadFrameError    a frame that does not decode, or does not fit its session
│   ├── BadOpenError     an open that asks for what no session here can have
│   ├── MismatchError    another model, another codec or another protocol than this server's
│   ├── AccessError      no token, or a wrong one
│   └── PullError        a pull of what this server does not offer
├── IdleError            a client that was silent for too long
│   └── UnreadError      a client that reads no answers: no status reaches it either
├── ReplacedError        the client opened the same session again on another stream
├── CapacityError        full for now: come back after `retry_after_s`
├── DrainingError        the server is shutting down: go to another one
├── ServerFailedError    a part of the server has stopped for good: go to another one
├── EngineError          our fault
└── LifecycleError       our fault: an event that a session's state does not allow
"""

from __future__ import annotations

from typing import Final

import grpc


class CloudError(Exception):
    """Root of everything that this package raises on purpose. One line, for the user."""


class StartError(CloudError):
    """The server cannot start as asked."""


class WeightsError(StartError):
    """The back's weights are missing, have a wrong shape, or belong to an unsupported model."""


class RequestError(CloudError):
    """The client asked for something wrong; only its own stream ends."""


class BadFrameError(RequestError):
    """A frame that does not decode, or does not fit its session."""


class BadOpenError(RequestError):
    """A session that nobody can have here, however empty the server."""


class MismatchError(RequestError):
    """Client and server hold different models, codec tables or protocol versions."""


class AccessError(RequestError):
    """The access token is missing or wrong."""


class PullError(RequestError):
    """A device asked for a file, or a list of files, that this server does not offer."""


class IdleError(CloudError):
    """The client was silent for longer than the server keeps a session for it."""


class UnreadError(IdleError):
    """The client left an answer unread for too long. A status would wait behind that answer."""


class ReplacedError(CloudError):
    """A newer stream opened the same session."""


class CapacityError(CloudError):
    """No room now. `retry_after_s` says when to ask again.

    elsewhere: another server behind the same address may have room.
    """

    def __init__(
        self, message: str, *, retry_after_s: float = 1.0, elsewhere: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.elsewhere = elsewhere


class DrainingError(CloudError):
    """The server is shutting down and takes no new sessions."""


class ServerFailedError(CloudError):
    """A part that the server cannot do without has stopped for good. The process ends soon."""


class EngineError(CloudError):
    """The model's step failed."""


class LifecycleError(CloudError):
    """Something happened to a session that its state does not allow: a bug of the server."""


# Every class above has an entry of its own or of a base; a test walks the tree.
STATUS_OF_ERROR: Final[dict[type[CloudError], grpc.StatusCode]] = {
    StartError: grpc.StatusCode.INTERNAL,
    BadFrameError: grpc.StatusCode.INVALID_ARGUMENT,
    BadOpenError: grpc.StatusCode.INVALID_ARGUMENT,
    MismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    AccessError: grpc.StatusCode.UNAUTHENTICATED,
    PullError: grpc.StatusCode.FAILED_PRECONDITION,
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    IdleError: grpc.StatusCode.ABORTED,
    ReplacedError: grpc.StatusCode.ABORTED,
    CapacityError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DrainingError: grpc.StatusCode.UNAVAILABLE,
    ServerFailedError: grpc.StatusCode.UNAVAILABLE,
    EngineError: grpc.StatusCode.INTERNAL,
    LifecycleError: grpc.StatusCode.INTERNAL,
}


def status_of(error: CloudError) -> grpc.StatusCode:
    """The gRPC status an error ends a stream with: that of its nearest mapped class."""
    for kind in type(error).__mro__:
        if kind in STATUS_OF_ERROR:
            return STATUS_OF_ERROR[kind]
    return grpc.StatusCode.INTERNAL
