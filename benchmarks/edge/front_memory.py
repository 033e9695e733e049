"""Where this process's memory is: its own, and pages of one mapped file (Linux's smaps)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Held(NamedTuple):
    """Resident bytes: anonymous memory anywhere, and clean pages of the file."""

    anonymous: int
    file: int


def memory_of(path: Path) -> Held:
    """What is resident now."""
    name, ours = os.path.realpath(path), False
    anonymous = file = 0
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first, *rest = line.split(maxsplit=5)
        if "-" in first and not first.endswith(":"):
            ours = bool(rest) and rest[-1] == name
        elif first == "Anonymous:":
            anonymous += int(rest[0]) << 10
            file -= (int(rest[0]) << 10) if ours else 0
        elif first == "Rss:" and ours:
            file += int(rest[0]) << 10
    return Held(anonymous, file)
