"""A disk that is full, read-only or broken: one line with the path and the cure.

The libraries that write a bundle each have their own exception for it. Some keep the error number
in a text only.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from optimizer.errors import BuildError, OptimizerError

_SPACE: Final = "no space left on the disk; free some, or choose a folder on another disk"
_READ_ONLY: Final = "cannot be written; choose a folder that you may write to"
_REASONS: Final = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: "the disk quota is used up; free some space, or choose another disk",
    errno.EFBIG: "a file grew beyond what the file system or a limit of the process allows",
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
    errno.EIO: "the disk reports an error",
}
# Rust ("os error 28") and Python's text ("[Errno 28]"). torch's writer says only where it failed.
_NUMBER: Final = re.compile(r"(?:os error |Errno )(\d+)")
_TORCH: Final = ("PytorchStreamWriter failed", "inline_container.cc")


@contextmanager
def naming_the_disk(path: Path) -> Iterator[None]:
    """Turn a disk's fault inside into a BuildError that names `path`, or the file at fault."""
    try:
        yield
    except Exception as error:
        fault = disk_fault(error, path)
        if fault is None:
            raise
        raise BuildError(fault) from error


def disk_fault(error: BaseException, path: Path) -> str | None:
    """The line for an error that a disk caused, whoever wrapped it; None for any other error.

    What is wrong with the model was said already (ModelError), so it is no fault of this disk.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OptimizerError) and not isinstance(cause, BuildError):
            return None
        number = cause.errno if isinstance(cause, OSError) else _number_in(str(cause))
        if number in _REASONS:
            named = cause.filename if isinstance(cause, OSError) else None
            return f"{named or path}: {_REASONS[number]}"
        cause = cause.__cause__ or cause.__context__
    return None


def _number_in(text: str) -> int | None:
    if any(part in text for part in _TORCH):
        return errno.ENOSPC
    found = _NUMBER.search(text)
    return int(found[1]) if found else None
