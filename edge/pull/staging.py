"""The folder beside a bundle in which its new files are gathered, and the lock of who does that.

    BUNDLE            the bundle
    .BUNDLE.pull/     partial files, and `lock`: while a pull runs, and after one was interrupted

A bundle holds only files that its manifest lists, so nothing of a pull lies inside it. The lock is
the kernel's (flock): it ends with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Final

from edge.errors import InputError

_LOCK_NAME: Final = "lock"


def staging_of(target: Path) -> Path:
    """Where the new files of the bundle `target` are gathered."""
    return target.parent / f".{target.name}.pull"


class Staging:
    """The folder while this process holds its lock. Use it as a context manager."""

    def __init__(self, target: Path, *, on_wait: Callable[[], None] = lambda: None) -> None:
        """target: the bundle, an absolute path. on_wait: called once if another process pulls."""
        self.folder = staging_of(target)
        self._on_wait = on_wait
        self._lock = -1

    def __enter__(self) -> Staging:
        while not self._take():
            pass  # the process before removed the folder, and the lock in it, when it was done
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._lock)

    def keep(self, paths: Collection[Path]) -> None:
        """Delete what pulls of another bundle have left, all but `paths`."""
        stems = {path.stem for path in paths}
        for path in self.folder.iterdir():
            if path.stem not in stems and path.name != _LOCK_NAME:
                path.unlink()

    def remove(self) -> None:
        """Delete the folder: all is in place. Who waits for the lock makes a new one."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take(self) -> bool:
        """Wait for the lock; whether it is still that of the folder."""
        if self.folder.is_symlink():
            raise InputError(f"{self.folder}: is a link; remove it")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        path = self.folder / _LOCK_NAME
        try:
            self._lock = os.open(path, flags, 0o600)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._on_wait()
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            is_current = os.fstat(self._lock).st_ino == path.stat().st_ino
        except FileNotFoundError:
            is_current = False
        if not is_current:
            os.close(self._lock)
        return is_current
