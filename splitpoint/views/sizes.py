"""Sizes and times as people write them on the command line."""

from __future__ import annotations

import re
from typing import Final

import typer

_UNITS: Final = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
}
LEAST_PLAIN_BYTES: Final = 1_000_000
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?|)b?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of '512MiB', '2GB', '1.5G' or a plain number; BadParameter for anything else.

    A plain number below a million is refused (but 0): somebody forgot the unit.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size such as 512MiB or 2GB")
    if not match[2] and 0 < float(match[1]) < LEAST_PLAIN_BYTES:
        raise typer.BadParameter(f"{text!r} has no unit: write {match[1]}MiB or {match[1]}GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def size_text(num_bytes: float) -> str:
    """Bytes for people: three digits and a binary unit."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(num_bytes) >= scale:
            return (
                f"{num_bytes / scale:.3g} {unit}"
                if num_bytes < 1000 * scale
                else (f"{num_bytes / scale:,.0f} {unit}")
            )
    return f"{num_bytes:.0f} B"


def time_text(seconds: float) -> str:
    """Seconds for people: three digits, in ms below one second."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
