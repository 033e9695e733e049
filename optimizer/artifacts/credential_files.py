"""Credentials files: one for the server, one for a device. Each holds all that its side needs.

    server.json    {"format": 1, "for": "server", "certificate": PEM, "key": PEM, "token": TEXT}
    device.json    {"format": 1, "for": "device", "server": "HOST:PORT", "ca": PEM, "token": TEXT}

Both hold secrets. They are written for their owner alone, and refused where everybody may read
them. No message repeats anything of their content.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import parse_json
from optimizer.errors import CredentialsError
from protos.addresses import parse_address
from protos.errors import AddressError

_FORMAT: Final = 1
_MAX_BYTES: Final = 64 << 10
_Side = Literal["server", "device"]
_OTHER: Final[Mapping[str, str]] = {"server": "device", "device": "server"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCredentials:
    """What `serve` needs. certificate: PEM, with its chain. key: PEM. token: of the devices."""

    certificate: bytes
    key: bytes = field(repr=False)
    token: str = field(repr=False)

    def write(self, path: Path) -> None:
        """Write a new file for its owner alone. Raises CredentialsError where there is one."""
        values = {
            "certificate": self.certificate.decode(),
            "key": self.key.decode(),
            "token": self.token,
        }
        write_secret(path, _text("server", values))

    @classmethod
    def read(cls, path: Path) -> ServerCredentials:
        """Raises CredentialsError naming the file."""
        values = _values(path, "server", ("certificate", "key", "token"))
        return cls(
            certificate=values["certificate"].encode(),
            key=values["key"].encode(),
            token=values["token"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCredentials:
    """What a device needs. server: HOST:PORT. ca: PEM of who signed the server's certificate."""

    server: str
    ca: bytes
    token: str = field(repr=False)

    @property
    def text(self) -> str:
        """The file's content, on one line: what a QR code shows."""
        values = {"server": self.server, "ca": self.ca.decode(), "token": self.token}
        return _text("device", values)

    def write(self, path: Path) -> None:
        """Write a new file for its owner alone. Raises CredentialsError where there is one."""
        write_secret(path, self.text)

    @classmethod
    def read(cls, path: Path) -> DeviceCredentials:
        """Raises CredentialsError naming the file."""
        values = _values(path, "device", ("server", "ca", "token"))
        try:
            parse_address(values["server"], lowest_port=1)
        except AddressError as error:
            raise CredentialsError(f"{path}: server {error}") from error
        return cls(server=values["server"], ca=values["ca"].encode(), token=values["token"])


def write_secret(path: Path, text: str) -> None:
    """Write a new file that nobody but its owner may read. Raises CredentialsError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise CredentialsError(f"{path}: exists already; nothing was overwritten") from error
    except OSError as error:
        raise CredentialsError(f"{path}: {error.strerror}") from error


def _text(side: _Side, values: Mapping[str, str]) -> str:
    return json.dumps({"format": _FORMAT, "for": side, **values}) + "\n"


def _values(path: Path, side: _Side, keys: tuple[str, ...]) -> dict[str, str]:
    """The texts of a file of that side, by key."""
    try:
        found: Any = parse_json(_read(path), source=str(path))
    except ProfileError as error:
        raise CredentialsError(f"{path}: is no credentials file") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise CredentialsError(f"{path}: is no credentials file of this version")
    if found.get("for") == _OTHER[side]:
        raise CredentialsError(
            f"{path}: is the {_OTHER[side]}'s file; the {side} needs its own ({side}.json)"
        )
    for key in keys:
        if not isinstance(found.get(key), str) or not found[key]:
            raise CredentialsError(f"{path}: has no text {key!r}")
    if not found["token"].isascii() or len(found["token"].split()) != 1:
        raise CredentialsError(f"{path}: its token is not one ASCII word")
    return {key: found[key] for key in keys}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & stat.S_IROTH:
                raise CredentialsError(
                    f"{path}: everybody on this machine can read it: chmod 600 {path}"
                )
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CredentialsError(f"{path}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise CredentialsError(f"{path}: is no credentials file")
    return data
