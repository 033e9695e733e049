"""A file that is not complete yet: its first bytes, and a note of how many of them are good.

    NAME.part   the bytes so far
    NAME.good   JSON: how many first bytes are on the disk, and their SHA-256

A process that is killed leaves both. The next one hashes the bytes that the note counts. Where the
hash is the note's, it goes on behind them; otherwise it begins again. So a page that a crash left
empty costs bytes, and never a wrong file. The file's whole SHA-256 is compared at its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from edge.pull.safe_writing import replace_file
from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json
from optimizer.artifacts.bundle import FileRecord

# A note is written this often: each costs a write that waits for the disk.
NOTE_BYTES: Final = 8 << 20
NOTE_S: Final = 0.5
_BLOCK_BYTES: Final = 1 << 20


class PartialFile:
    """One of them, opened to go on. Use it as a context manager."""

    def __init__(
        self,
        folder: Path,
        name: str,
        record: FileRecord,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """folder: where partial files lie. name: the file's in the bundle. clock: seconds."""
        key = hashlib.sha256(f"{record.sha256} {name}".encode()).hexdigest()[:32]
        self.path = folder / f"{key}.part"
        self.num_bytes = 0
        self._note = folder / f"{key}.good"
        self._record = record
        self._clock = clock
        self._digest = hashlib.sha256()
        self._noted = (0, clock())

    def __enter__(self) -> PartialFile:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self.path, flags, 0o666), "r+b", buffering=0)
        self._take_up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.num_bytes > self._noted[0]:
                self.write_note()
        finally:
            self._file.close()

    @property
    def num_missing(self) -> int:
        """How many of the file's bytes are not there."""
        return self._record.num_bytes - self.num_bytes

    def has_its_hash(self) -> bool:
        """Whether all bytes together have the hash that the manifest says."""
        return self.num_missing == 0 and self._digest.hexdigest() == self._record.sha256

    def write(self, data: bytes) -> None:
        """Append bytes as they come, and hash them."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._digest.update(data)
        self.num_bytes += len(data)
        noted_bytes, noted_s = self._noted
        if self.num_bytes - noted_bytes >= NOTE_BYTES or self._clock() - noted_s >= NOTE_S:
            self.write_note()

    def write_note(self) -> None:
        """Bring the bytes to the disk, then note them."""
        os.fsync(self._file.fileno())
        said = {"num_bytes": self.num_bytes, "sha256": self._digest.hexdigest()}
        replace_file(self._note, json.dumps(said).encode())
        self._noted = (self.num_bytes, self._clock())

    def begin_again(self) -> None:
        """Forget all bytes."""
        self._note.unlink(missing_ok=True)
        self._file.truncate(0)
        self._file.seek(0)
        self._digest = hashlib.sha256()
        self.num_bytes = 0
        self._noted = (0, self._clock())

    def remove(self) -> None:
        """Delete it and its note."""
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _take_up(self) -> None:
        """Go on behind the bytes that the note counts, if they are what it says."""
        num_bytes, sha256 = self._noted_state()
        left = num_bytes
        while left and (block := self._file.read(min(_BLOCK_BYTES, left))):
            self._digest.update(block)
            left -= len(block)
        if left or self._digest.hexdigest() != sha256:
            self.begin_again()
            return
        self._file.truncate(num_bytes)
        self._file.seek(num_bytes)
        self.num_bytes = num_bytes
        self._noted = (num_bytes, self._clock())

    def _noted_state(self) -> tuple[int, str]:
        """What the note says; (0, "") where it says nothing of use."""
        try:
            said: Any = read_json(self._note)
            num_bytes, sha256 = said["num_bytes"], said["sha256"]
        except (ProfileError, KeyError, TypeError):
            return 0, ""
        if type(num_bytes) is not int or not 0 <= num_bytes <= self._record.num_bytes:
            return 0, ""
        return num_bytes, str(sha256)
