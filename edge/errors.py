"""What can go wrong on the device: every error that the edge raises on purpose.

EdgeError
├── InputError            the request itself: too long, unknown token ids, bad parameters
│   └── ContextLengthError    prompt and answer are longer than the plan allows
├── MemoryLimitError      the limit set for this process would be exceeded
├── FrontError            the front segment cannot be loaded or run
├── TooSlowError          the deadline between tokens cannot be held
├── SessionError          an event that the session's state does not allow
└── TransportError        the link or the server
    ├── ConnectError          nothing answers at this address
    │   └── MisconfiguredError    this address cannot work as it is given: name, TLS, certificate
    ├── DeadlineError         no answer within the step's deadline
    ├── BusyError             the server is full; `retry_after_s` says when to ask again
    ├── RefusedError          the server will not serve this session: mismatch, no permission
    ├── LostError             the stream broke after it had been opened
    └── PeerError             the server's answer makes no sense in this session
"""

from __future__ import annotations


class EdgeError(Exception):
    """Root of everything that this package raises on purpose. One line, for the user."""


class InputError(EdgeError):
    """The request cannot be served as it is: too long, unknown token ids, bad parameters."""


class ContextLengthError(InputError):
    """Prompt and answer together are longer than the plan allows."""


class MemoryLimitError(EdgeError):
    """The memory limit set for this process would be exceeded."""


class FrontError(EdgeError):
    """The front segment cannot be loaded or run."""


class SessionError(EdgeError):
    """An event arrived that the session's state does not allow."""


class TooSlowError(EdgeError):
    """The deadline between tokens cannot be held. The tokens that have come stay valid."""


class TransportError(EdgeError):
    """The link or the server failed."""


class ConnectError(TransportError):
    """Nothing answers at this address."""


class MisconfiguredError(ConnectError):
    """The address cannot work as it is given: an unknown name, TLS, or a certificate."""


class DeadlineError(TransportError):
    """No answer came within the step's deadline."""


class BusyError(TransportError):
    """The server is full. `retry_after_s`: when it suggests to ask again, in seconds."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RefusedError(TransportError):
    """The server will not serve this session: another model, another version, no permission."""


class LostError(TransportError):
    """The stream broke after it had been opened."""


class PeerError(TransportError):
    """The server answered something that the session does not allow."""
