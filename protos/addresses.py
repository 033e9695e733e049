"""HOST:PORT as people write it, checked once, and whether a host is loopback."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

from protos.errors import AddressError

MAX_PORT: Final = 65_535
MAX_HOST_CHARS: Final = 253  # of a name in the DNS (RFC 1035, section 2.3.4, as text)
MAX_SHOWN_CHARS: Final = 80
# Labels of letters, digits, '-' and '_' with dots between them; letters of any language (IDNA).
_HOST: Final = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?")


class Address(NamedTuple):
    """A host name or an IP address (IPv6 without brackets), and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, lowest_port: int = 0) -> Address:
    """The address that 'HOST:PORT' or '[IPv6]:PORT' names.

    lowest_port: 0 where a program listens (the system picks a free port), 1 where it connects.
    Raises AddressError in one line that says what is wrong and how to write it.
    """
    host, colon, port = text.rpartition(":")
    why = _foreign_part(text)
    if why is None and not (colon and port.isascii() and port.isdigit()):
        why = ""
        if text.isascii() and text.isdigit():
            why = f"the host is missing, as in 127.0.0.1:{text[:6]}"
        elif _HOST.fullmatch(text):
            why = f"the port is missing, as in {text}:50051"
    if why is None and (not host or not _is_host(host)):
        why = "" if not host else f"{shown(host)} is no host name and no IP address"
    if why is not None:
        raise AddressError(f"{shown(text)} is not HOST:PORT" + (f": {why}" if why else ""))
    if not lowest_port <= int(port[:6]) <= MAX_PORT or len(port) > 6:
        raise AddressError(f"{shown(text)}: a port lies between {lowest_port} and {MAX_PORT}")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def shown(text: str) -> str:
    """What was written, in quotes, on one short line, and without a password."""
    _, is_secret, place = text.rpartition("@")
    text = f"...@{place}" if is_secret else text
    return repr(text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}...")


def _foreign_part(text: str) -> str | None:
    """Why `text` is something else than an address, where one part of it says so."""
    scheme, is_url, rest = text.partition("://")
    if is_url:
        place = re.split(r"[/?#]", rest.rpartition("@")[2], maxsplit=1)[0]
        return (
            f"leave out {scheme + '://'!r} and what follows the port, as in {place or 'HOST:PORT'}"
        )
    if "@" in text:
        return "an address holds no user and no password (--token-file takes a token)"
    if any(letter.isspace() for letter in text):
        return "leave out the spaces"
    if "," in text:
        return "give each address in an option of its own"
    for sign in ("/", "?", "#"):
        if sign in text:
            return f"leave out {sign!r} and what follows it"
    return None


def _is_host(host: str) -> bool:
    """Whether `host` is a name, an IPv4 address, or an IPv6 address with or without brackets."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" not in bare:
        return bare is host and len(host) <= MAX_HOST_CHARS and bool(_HOST.fullmatch(host))
    try:
        return ipaddress.ip_address(bare).version == 6
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
