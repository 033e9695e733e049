"""A hidden folder beside the result, in which something is made that must be whole or not there.

    PARENT/.NAME-xxxx/        made by the process that works in it, removed at its end
      splitpoint.lock         locked while this process lives; holds NAME
      replaced/               the old result, while the new one takes its place

The operating system gives the lock back when a process ends, however it ends. So whoever works in
the same parent next can tell a folder that a killed process left from one in use, and removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LOCK_NAME: Final = "splitpoint.lock"
_REPLACED: Final = "replaced"


@contextlib.contextmanager
def working_folder(out: Path, *, resume: bool = False, keep: bool = False) -> Iterator[Path]:
    """An empty folder beside `out` for the time of the block. What is left in it is removed.

    Folders that killed processes left in the same parent are removed first. resume: where one of
    them was making `out`, it is taken over as it is. keep: Ctrl-C leaves the folder for later.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        folder = _take_over(out, held) if resume else None
        remove_abandoned(out.parent)
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
            held.enter_context(_locked(folder, out.name))
        try:
            yield folder
        except KeyboardInterrupt:
            if not (resume or keep):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _take_over(out: Path, held: contextlib.ExitStack) -> Path | None:
    """The newest folder that a process which has ended left of `out`, locked by this one now."""
    locks = sorted(
        out.parent.glob(f".{out.name}-*/{LOCK_NAME}"), key=lambda path: path.parent.stat().st_mtime
    )
    for lock in reversed(locks):
        folder = lock.parent
        if folder.is_symlink() or lock.is_symlink() or (folder / _REPLACED).exists():
            continue
        stream = lock.open("r+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = stream.read(4096) == out.name
        except BlockingIOError:
            mine = False
        if mine:
            held.callback(stream.close)
            return folder
        stream.close()
    return None


def publish(made: Path, out: Path) -> None:
    """Rename `made`, which lies in a working folder, to `out`. What `out` was is removed after."""
    replaced = made.parent / _REPLACED
    if out.exists():
        out.rename(replaced)
    try:
        made.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove the working folders in `parent` whose process has ended; returns them.

    An old result that such a process had put aside, without a new one in its place, comes back.
    """
    removed = []
    for lock in sorted(parent.glob(f".*/{LOCK_NAME}")):
        folder = lock.parent
        if folder.is_symlink() or lock.is_symlink() or not lock.is_file():
            continue
        with (
            contextlib.suppress(OSError),
            lock.open("r+", encoding="utf-8", errors="replace") as stream,
        ):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: in use
            out = parent / Path(stream.read(4096)).name
            if (folder / _REPLACED).is_dir() and out != parent and not out.exists():
                (folder / _REPLACED).rename(out)
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the folder's lock. It gets its name when it is locked, so nobody takes it for old."""
    unnamed = folder / f".{LOCK_NAME}"
    with unnamed.open("w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(name)
        stream.flush()
        os.rename(unnamed, folder / LOCK_NAME)
        yield
