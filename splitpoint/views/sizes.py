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
# Nobody waits longer for what each is a limit of.
MOST_TBT_S: Final = 30.0
MOST_TTFT_S: Final = 3600.0
MOST_WAIT_S: Final = 86_400.0
MOST_MBPS: Final = 400_000.0  # of an Ethernet link
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?|)b?", re.IGNORECASE)


def parse_size(text: str, option: str = "") -> int:
    """Bytes of '512MiB', '2GB', '1.5G' or a plain number; BadParameter for anything else.

    A plain number below a million is refused (but 0): somebody forgot the unit. option: which one
    it is the value of, for the message.
    """
    match = _SIZE.fullmatch(text.strip())
    what = f"{option} {text!r}".strip()
    if match is None:
        raise typer.BadParameter(f"{what} is not a size such as 512MiB or 2GB")
    if not match[2] and 0 < float(match[1]) < LEAST_PLAIN_BYTES:
        raise typer.BadParameter(f"{what} has no unit: write {match[1]}G, or {match[1]}MiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def check_seconds(seconds: float | None, option: str, most_s: float) -> float | None:
    """`seconds` as they are. BadParameter beyond `most_s`: milliseconds were meant."""
    if seconds is not None and not seconds <= most_s:
        raise typer.BadParameter(
            f"{option} {seconds:g} is in seconds, at most {most_s:g}; for {seconds:g} ms write "
            f"{seconds / 1e3:g}"
        )
    return seconds


def check_mbps(rate: float | None, option: str) -> float | None:
    """A rate in Mbit/s as it is. BadParameter for one that no link has: bit/s were meant."""
    if rate is not None and not rate <= MOST_MBPS:
        raise typer.BadParameter(
            f"{option} {rate:g} is in Mbit/s; for {rate:g} bit/s write {rate / 1e6:g}"
        )
    return rate


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
