"""Where the lines of earlier chats are kept: a file that only its owner can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 1 << 20
_KEPT_BYTES: Final = MAX_BYTES // 2
_ENTRY: Final = b"\n# "  # how prompt_toolkit begins each entry, after an empty line


def state_folder() -> Path | None:
    """XDG's folder for state; None where there is no home folder."""
    named = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(named):  # the specification wants relative ones ignored
        return Path(named) / "splitpoint"
    try:
        return Path.home() / ".local" / "state" / "splitpoint"
    except RuntimeError:
        return None


def history_file() -> Path:
    """The history's file, made if need be, with user-only permissions, and not too large.

    Raises OSError where there can be none: a link or a folder in its place, a full disk.
    """
    folder = state_folder()
    if folder is None:
        raise FileNotFoundError("there is no home folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "chat-history"
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    number = os.open(path, flags, 0o600)
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise FileExistsError(f"{path} is no file")
        os.fchmod(number, 0o600)
        if found.st_size > MAX_BYTES:
            _shorten(number, found.st_size)
    finally:
        os.close(number)
    return path


def _shorten(number: int, size: int) -> None:
    """Keep the newest entries, whole."""
    rest = os.pread(number, _KEPT_BYTES, size - _KEPT_BYTES)
    at = rest.find(_ENTRY)
    os.ftruncate(number, 0)
    os.write(number, rest[at:] if at >= 0 else b"")
