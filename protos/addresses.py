"""HOST:PORT as people write it, checked once, and whether a host is loopback."""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

from protos.errors import AddressError

MAX_PORT: Final = 65_535


class Address(NamedTuple):
    """A host name or an IP address (IPv6 without brackets), and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, lowest_port: int = 0) -> Address:
    """The address that 'HOST:PORT' or '[IPv6]:PORT' names.

    lowest_port: 0 where a program listens (the system picks a free port), 1 where it connects.
    Raises AddressError in one line that says what is wrong.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()):
        raise AddressError(f"{text!r} is not HOST:PORT")
    if not lowest_port <= int(port[:6]) <= MAX_PORT or len(port) > 6:
        raise AddressError(f"{text!r}: a port lies between {lowest_port} and {MAX_PORT}")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
