"""A file of weights before it is read: what is there instead of weights, said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from optimizer.errors import ModelError

_LFS_START: Final = b"version https://git-lfs.github.com/spec/"


def check_file(path: Path) -> None:
    """Raises ModelError, with the cure, for a file that was never fetched, or is missing or empty.

    A Git checkout without LFS holds small text files (pointers) in the place of large files. A
    failed download may leave a web page.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(256)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; fetch the model again") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise ModelError(f"{path}: the file is empty; fetch the model again")
    if start.startswith(_LFS_START):
        raise ModelError(f"{path}: a Git-LFS pointer, not the file itself; run 'git lfs pull'")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise ModelError(f"{path}: a web page, not a model's file; fetch the model again")
