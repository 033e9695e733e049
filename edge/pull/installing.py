"""The folder that gets a bundle: what of it is there already, and how the rest comes into place.

The steps come in an order in which a process that is killed between two of them leaves what the
next pull mends: first the files that the new manifest lists no more are deleted, then the manifest
is replaced, then the files. A bundle between two steps does not open: its hashes do not fit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from edge.errors import InputError
from edge.pull.safe_writing import replace_file, sync_folder
from edge.pull.wanted import WantedFiles
from optimizer.artifacts.bundle import MANIFEST_NAME, names_of_role
from optimizer.artifacts.manifest import read_manifest, sha256_of
from optimizer.errors import BundleError


class TargetFolder:
    """The folder of one bundle. root: an absolute path; it may be missing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self) -> None:
        """Raises InputError for a folder that holds something else than a device's bundle."""
        if self.root.is_symlink() or (self.root.exists() and not self.root.is_dir()):
            raise InputError(f"{self.root}: is no folder; give another one")
        if self.root.is_mount():
            raise InputError(f"{self.root}: is a mount point; give a folder in it")
        if not self.root.exists() or not any(self.root.iterdir()):
            return
        if not (self.root / MANIFEST_NAME).is_file():
            raise InputError(f"{self.root}: is not empty and holds no bundle; give another folder")
        if (self.root / "cloud").exists():
            raise InputError(f"{self.root}: holds a server's bundle (cloud/); give another folder")

    def has_manifest(self, wanted: WantedFiles) -> bool:
        """Whether the folder's manifest is the server's, byte for byte."""
        try:
            return (self.root / MANIFEST_NAME).read_bytes() == wanted.listed.manifest
        except OSError:
            return False

    def missing(self, wanted: WantedFiles, *, by_size: bool) -> list[str]:
        """The files that are not there, or are others. by_size: whoever opens it hashes it anyway.

        Raises InputError for a link where a folder should be.
        """
        return [name for name in wanted.records if not self._has(name, wanted, by_size=by_size)]

    def _has(self, name: str, wanted: WantedFiles, *, by_size: bool) -> bool:
        self._check_folders(name)
        path, record = self.root / name, wanted.records[name]
        if path.is_symlink() or not path.is_file() or path.stat().st_size != record.num_bytes:
            return False
        return by_size or sha256_of(path) == record.sha256

    def install(self, wanted: WantedFiles, staged: Mapping[str, Path]) -> None:
        """Put the staged files and the manifest into place. Raises InputError as `missing`."""
        self.root.mkdir(parents=True, exist_ok=True)
        for name in self._stale(wanted):
            self._check_folders(name)
            (self.root / name).unlink(missing_ok=True)
        if not self.has_manifest(wanted):
            replace_file(self.root / MANIFEST_NAME, wanted.listed.manifest)
            sync_folder(self.root)
        for name, path in staged.items():
            self._check_folders(name)
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(self.root / name)
        for folder in {self.root, *((self.root / name).parent for name in staged)}:
            sync_folder(folder)

    def _stale(self, wanted: WantedFiles) -> Iterable[str]:
        """Files of the bundle before that the new one does not have."""
        try:
            before = read_manifest(self.root / MANIFEST_NAME).files
        except BundleError:
            return []
        names = [name for name in names_of_role(before, "edge") if name not in wanted.records]
        leftover = self.root / f"{MANIFEST_NAME}.new"  # of a process that was killed
        leftover.unlink(missing_ok=True)
        return names

    def _check_folders(self, name: str) -> None:
        """InputError where a folder of the file is a link, or a file."""
        for folder in _folders(self.root, name):
            if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
                raise InputError(f"{folder}: is no folder of the bundle; remove it")


def _folders(root: Path, name: str) -> Iterator[Path]:
    """The folders from `root` down to the file `name`, without `root` itself."""
    parts = PurePosixPath(name).parts[:-1]
    for count in range(1, len(parts) + 1):
        yield root.joinpath(*parts[:count])
