"""What every encoder and decoder of the wire needs: protobuf in and out, and checks of fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from protos.errors import LocalWireError, RemoteWireError, VersionError
from protos.limits import MAX_DETAIL_CHARS, MAX_MESSAGE_BYTES, PROTOCOL_VERSION

MessageT = TypeVar("MessageT", bound=Message)

_HEX_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def parse(kind: type[MessageT], data: bytes) -> MessageT:
    """The protobuf message of that kind. Raises RemoteWireError."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise RemoteWireError(f"message of {len(data)} bytes, at most {MAX_MESSAGE_BYTES}")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RemoteWireError(f"not a {kind.DESCRIPTOR.name}: {error}") from error


def serialize(build: Callable[[], Message]) -> bytes:
    """The bytes of the message that `build` makes. Raises LocalWireError."""
    try:
        data = build().SerializeToString()
    except (ValueError, TypeError) as error:
        raise LocalWireError(f"a value the wire cannot carry: {error}") from error
    if len(data) > MAX_MESSAGE_BYTES:
        raise LocalWireError(f"message of {len(data)} bytes, at most {MAX_MESSAGE_BYTES}")
    return data


def check_version(version: int, *, newest: int = PROTOCOL_VERSION) -> None:
    """Raises VersionError for a protocol version that this side does not speak."""
    if not PROTOCOL_VERSION <= version <= newest:
        raise VersionError(
            f"protocol version {version}, this side speaks {newest}: update the older one"
        )


def in_range(name: str, value: int, low: int, high: int) -> int:
    """`value` as it is. Raises RemoteWireError, which names the field, outside [low, high]."""
    if not low <= value <= high:
        raise RemoteWireError(f"{name} is {value}, must lie between {low} and {high}")
    return value


def hex_sha256(name: str, value: str) -> str:
    """`value` as it is. Raises RemoteWireError where it is no SHA-256 in lower-case hex."""
    if not _HEX_SHA256.fullmatch(value):
        raise RemoteWireError(f"{name} is not a SHA-256 in lower-case hex")
    return value


def plain_text(text: str) -> str:
    """What a peer said in words, as one line that a terminal can show: no control characters."""
    shown = text[:MAX_DETAIL_CHARS]
    return "".join(letter if letter.isprintable() else "?" for letter in shown)
