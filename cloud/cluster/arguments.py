"""What a file of Ray Serve says in `args`, checked by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from cloud.errors import StartError
from cloud.server.access import Access
from hwprofiles.schema.near_names import did_you_mean
from optimizer.artifacts.credential_files import ServerCredentials
from optimizer.errors import CredentialsError

_FILES: Final = ("tls_cert", "tls_key", "client_ca", "token_file")
_PATHS: Final = ("bundle", "draft_head", *_FILES)
_MORE: Final = "more_bundles"
# What `read_access` reads.
ACCESS_NAMES: Final = (*_FILES, "insecure", "credentials")


def read_access(arguments: Mapping[str, Any]) -> Access:
    """What guards the server, from files that the machine has. Raises StartError."""
    values = {name: arguments[name] for name in (*_FILES, "insecure") if name in arguments}
    own = None
    if "credentials" in arguments:
        try:
            own = ServerCredentials.read(Path(arguments["credentials"]))
        except CredentialsError as error:
            raise StartError(str(error)) from error
    return Access(**with_paths(values), own=own)


def check_arguments(
    arguments: Mapping[str, Any], known: Iterable[str], *, flags: Iterable[str]
) -> None:
    """Raise StartError for a name that is not known, and for a flag that is not true or false.

    A flag in quotes is a text, and every text would count as true.
    """
    names, are_flags = set(known), {"insecure", *flags}
    for name in arguments:
        if name not in names:
            raise StartError(f"{name}: no such setting{did_you_mean(name, sorted(names))}")
        value = arguments[name]
        if name in are_flags and not isinstance(value, bool):
            raise StartError(
                f"{name}: {value!r} is neither true nor false; write it without quotes"
            )


def whole_number(arguments: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number of the file. Raises StartError for anything else."""
    value = arguments.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise StartError(f"{name}: {value!r} is no whole number")
    return value


def plain_number(arguments: Mapping[str, Any], name: str, default: float) -> float:
    """A number of the file. Raises StartError for anything else."""
    value = arguments.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise StartError(f"{name}: {value!r} is no number")
    return float(value)


def with_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with those that are paths as paths. Raises StartError for no list of bundles."""
    made: dict[str, Any] = {
        name: Path(value) if name in _PATHS and value is not None else value
        for name, value in values.items()
    }
    more = made.get(_MORE)
    if more is not None:
        if isinstance(more, str) or not all(isinstance(one, str | Path) for one in more):
            raise StartError(f"{_MORE}: a list of bundles' folders is expected")
        made[_MORE] = tuple(Path(one) for one in more)
    return made
