"""What can be wrong with a message.

WireError
├── AddressError        an address that is not HOST:PORT
├── LocalWireError      we tried to send something that the wire does not carry
└── RemoteWireError     the peer sent something that is malformed or out of range
    └── VersionError    the peer speaks another version of the protocol
"""

from __future__ import annotations


class WireError(Exception):
    """Root of everything that this package raises on purpose."""


class AddressError(WireError):
    """The text is not HOST:PORT, or its port does not exist."""


class LocalWireError(WireError):
    """We tried to send something that the wire does not carry: a bug on our side."""


class RemoteWireError(WireError):
    """The peer sent something malformed or out of range."""


class VersionError(RemoteWireError):
    """The peer speaks another version of the protocol; the message names both."""
