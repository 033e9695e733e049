"""A pull, from the server's list to a bundle in its place.

Everything is gathered beside the bundle first, under a lock, and put in place when all of it is
there and has the manifest's hashes. What was gathered when a pull was interrupted stays for the
next one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge.errors import (
    BusyError,
    ConnectError,
    DeadlineError,
    InputError,
    LostError,
    MisconfiguredError,
    PeerError,
    TransportError,
)
from edge.pull.installing import TargetFolder
from edge.pull.partial_file import PartialFile
from edge.pull.rate_limit import PullRate
from edge.pull.source import FileSource
from edge.pull.staging import Staging, staging_of
from edge.pull.wanted import WantedFiles, wanted_files
from optimizer.artifacts.bundle import FileRecord
from optimizer.artifacts.manifest import shown
from protos.pull import FetchRequest, FileList

# What a pull leaves free on the disk.
RESERVE_BYTES: Final = 16 << 20
# Calls in a row that brought nothing new, and calls of one file in all.
MAX_FAILURES: Final = 8
MAX_CALLS: Final = 10_000
# How long a device waits for a place while others pull, seconds.
MAX_BUSY_S: Final = 900.0
_FIRST_WAIT_S: Final = 0.25
_LONGEST_WAIT_S: Final = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """What a pull did. sha256: of the manifest. num_bytes: of all of the device's files.

    fetched: the names that were fetched. fetched_bytes: bytes of content that came, this time.
    """

    address: str
    sha256: str
    model_sha256: str
    num_files: int
    num_bytes: int
    fetched: tuple[str, ...]
    fetched_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSettings:
    """How to pull.

    rate: how fast. by_size: files of the right size need no hash, because whoever opens the bundle
    hashes them. progress: called with (bytes there, bytes in all). begin: called under the lock,
    before the first file is fetched. on_wait: called once when another process pulls into the same
    folder. sleep: seconds.
    """

    rate: PullRate = field(default_factory=PullRate)
    by_size: bool = False
    progress: Callable[[int, int], None] = lambda done, total: None
    begin: Callable[[], None] = lambda: None
    on_wait: Callable[[], None] = lambda: None
    sleep: Callable[[float], None] = time.sleep


def pull(source: FileSource, target: Path, settings: PullSettings | None = None) -> PullReport:
    """Bring the folder `target` to the state of the server's bundle, as far as a device needs it.

    Raises TransportError where the server cannot be used (PeerError where what it sends is refused)
    and InputError where the folder cannot. The folder is then as it was.
    """
    settings = settings or PullSettings()
    wanted = wanted_files(_patiently(source.list_files, settings.sleep))
    folder = TargetFolder(Path(os.path.abspath(target)))
    folder.check()
    is_there = folder.has_manifest(wanted) and not folder.missing(wanted, by_size=settings.by_size)
    if is_there and not staging_of(folder.root).exists():  # else a pull is at work, or was killed
        return _report(source, wanted, (), 0)
    try:
        with Staging(folder.root, on_wait=settings.on_wait) as staging:
            settings.begin()
            folder.check()
            missing = folder.missing(wanted, by_size=False)
            work = _Pull(source, wanted, staging.folder, settings)
            folder.install(wanted, work.fetch_all(missing, staging))
            staging.remove()
    except OSError as error:  # a full disk, or a place that cannot be written
        raise InputError(f"{error.filename or folder.root}: {error.strerror}") from error
    return _report(source, wanted, tuple(missing), work.fetched_bytes)


def _report(
    source: FileSource, wanted: WantedFiles, fetched: tuple[str, ...], fetched_bytes: int
) -> PullReport:
    return PullReport(
        address=source.address,
        sha256=wanted.listed.sha256,
        model_sha256=wanted.model_sha256,
        num_files=len(wanted.records),
        num_bytes=wanted.num_bytes,
        fetched=fetched,
        fetched_bytes=fetched_bytes,
    )


class _Pull:
    """The fetching of one pull's files. fetched_bytes: that came so far."""

    def __init__(
        self, source: FileSource, wanted: WantedFiles, folder: Path, settings: PullSettings
    ) -> None:
        self.fetched_bytes = 0
        self._source = source
        self._wanted = wanted
        self._folder = folder
        self._settings = settings
        self._done_bytes = 0  # of files that are there, and of partial ones

    def fetch_all(self, names: list[str], staging: Staging) -> Mapping[str, Path]:
        """The complete and checked files, by name."""
        records = self._wanted.records
        parts = {name: PartialFile(self._folder, name, records[name]) for name in names}
        staging.keep([part.path for part in parts.values()])
        self._check_disk(names, [part.path for part in parts.values()])
        self._done_bytes = self._wanted.num_bytes - sum(records[name].num_bytes for name in names)
        for name, part in parts.items():
            with part:
                self._fetch(name, records[name], part)
        return {name: part.path for name, part in parts.items()}

    def _check_disk(self, names: list[str], paths: list[Path]) -> None:
        needed = sum(self._wanted.records[name].num_bytes for name in names)
        there = sum(path.stat().st_size for path in paths if path.is_file())
        free = shutil.disk_usage(self._folder).free
        if needed - there > free - RESERVE_BYTES:
            raise InputError(
                f"{self._folder.parent}: the bundle needs {needed - there:,} bytes more, and "
                f"{free:,} are free"
            )

    def _fetch(self, name: str, record: FileRecord, part: PartialFile) -> None:
        """Fetch what is missing of one file. Where a taken-up beginning spoils it, once more."""
        is_taken_up = part.num_bytes > 0
        self._told(part.num_bytes)
        self._fill(name, record, part)
        if not part.has_its_hash() and is_taken_up:
            self._told(-part.num_bytes)
            part.begin_again()
            self._fill(name, record, part)
        if not part.has_its_hash():
            part.begin_again()
            part.remove()
            raise PeerError(
                f"{shown(name)} is refused: what came is not what the manifest says (SHA-256)"
            )

    def _fill(self, name: str, record: FileRecord, part: PartialFile) -> None:
        patience = _Patience(self._settings.sleep)
        for _ in range(MAX_CALLS):
            if not part.num_missing:
                return
            before = part.num_bytes
            try:
                self._take_chunks(name, record, part)
                error: TransportError = LostError(f"{shown(name)} ended early")
            except PeerError:
                raise
            except TransportError as caught:
                error = caught
            if not part.num_missing:
                return
            if part.num_bytes > before:
                patience = _Patience(self._settings.sleep)
            patience.wait_after(error)
        raise LostError(f"{shown(name)} did not come within {MAX_CALLS} calls")

    def _take_chunks(self, name: str, record: FileRecord, part: PartialFile) -> None:
        """The chunks of one call. Raises PeerError for one that is not the file's next bytes."""
        request = FetchRequest(
            manifest_sha256=self._wanted.listed.sha256,
            name=name,
            offset=part.num_bytes,
            max_chunk_bytes=self._settings.rate.chunk_bytes,
        )
        for chunk in self._source.fetch(request):
            if chunk.offset != part.num_bytes:
                raise PeerError(f"{shown(name)} is refused: its bytes do not follow one another")
            if part.num_bytes + len(chunk.data) > record.num_bytes:
                raise PeerError(f"{shown(name)} is refused: it is longer than the manifest says")
            part.write(chunk.data)
            self.fetched_bytes += len(chunk.data)
            self._told(len(chunk.data))
            self._settings.rate.took(len(chunk.data))

    def _told(self, num_bytes: int) -> None:
        self._done_bytes += num_bytes
        self._settings.progress(self._done_bytes, self._wanted.num_bytes)


class _Patience:
    """How often, and how long, to ask again while nothing new comes."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep = sleep
        self._failures = 0
        self._busy_s = 0.0

    def wait_after(self, error: TransportError) -> None:
        """Wait before the next call; raise the error where there should be none."""
        if isinstance(error, BusyError):
            wait_s = max(error.retry_after_s, _FIRST_WAIT_S)
            self._busy_s += wait_s
            if self._busy_s > MAX_BUSY_S:
                raise error
            self._sleep(wait_s)
            return
        self._failures += 1
        if not _passes(error) or self._failures > MAX_FAILURES:
            raise error
        self._sleep(min(_FIRST_WAIT_S * 2**self._failures, _LONGEST_WAIT_S))


def _patiently(ask: Callable[[], FileList], sleep: Callable[[float], None]) -> FileList:
    """What `ask` gives; asked again while the server is full."""
    patience = _Patience(sleep)
    while True:
        try:
            return ask()
        except BusyError as error:
            patience.wait_after(error)


def _passes(error: TransportError) -> bool:
    """Whether the same call may work later."""
    if isinstance(error, MisconfiguredError):
        return False
    return isinstance(error, (ConnectError, DeadlineError, LostError))
