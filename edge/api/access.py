"""Who may use the local API: loopback for everyone here, beyond it only with TLS and a key."""

from __future__ import annotations

import codecs
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from edge.api.errors import ApiError
from edge.errors import InputError
from protos.addresses import is_loopback

_SCHEME: Final = "bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAccess:
    """What guards the API. `insecure` waives the guard."""

    tls_cert: Path | None = None
    tls_key: Path | None = None
    key_file: Path | None = None
    insecure: bool = False

    def check(self, host: str) -> None:
        """InputError unless these guards suffice for listening on `host`."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("TLS needs both --listen-tls-cert and --listen-tls-key")
        guarded = self.tls_cert is not None and self.key_file is not None
        if self.insecure or is_loopback(host) or guarded:
            return
        raise InputError(
            f"refusing to listen on {host} without TLS and a key: give --listen-tls-cert, "
            "--listen-tls-key and --api-key-file, or --insecure if the network is yours alone"
        )

    def keys(self) -> tuple[bytes, ...]:
        """The accepted keys: one a line, blank lines and #-comments left out."""
        if self.key_file is None:
            return ()
        lines = (
            line.strip()
            for line in self.key_file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
        )
        keys = tuple(line for line in lines if line and not line.startswith(b"#"))
        if not keys:
            raise InputError(f"{self.key_file}: no key in it")
        return keys


def check_key(authorization: str | None, keys: tuple[bytes, ...]) -> None:
    """ApiError 401 unless the header carries one of the keys; every key is compared in full."""
    if not keys:
        return
    given = (authorization or "").encode("utf-8", "replace")
    has_scheme = given[: len(_SCHEME)].lower() == _SCHEME.encode()
    key = given[len(_SCHEME) :].strip() if has_scheme else b""
    matches = [hmac.compare_digest(key, accepted) for accepted in keys]
    if not any(matches):
        raise ApiError(
            "a valid API key is needed (Authorization: Bearer KEY)",
            status=401,
            kind="authentication_error",
            code="invalid_api_key",
        )


def check_host(host: str | None) -> None:
    """ApiError 403 unless a Host header names this machine by a loopback name or address.

    A web page can have its own name resolve to 127.0.0.1 (DNS rebinding); to the browser this API
    is then the page's own server. The header still carries the page's name.
    """
    try:
        name = urlsplit(f"//{host or ''}").hostname
    except ValueError:
        name = None
    if name is None or not is_loopback(name):
        raise ApiError(
            "without an API key this server answers to localhost and loopback addresses only "
            "(--api-key-file lifts that)",
            status=403,
            kind="authentication_error",
            code="unknown_host",
        )
