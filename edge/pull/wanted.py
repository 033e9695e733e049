"""What a device wants of a server's bundle. All that the server says is hostile until checked here.

The manifest's own checks come first (`optimizer.artifacts.manifest`): no absolute name, no `..`, no
backslash, one way to write a name, no name twice. Here follow those of a folder that is filled from
afar.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from edge.errors import PeerError
from optimizer.artifacts.bundle import PLAN_NAME, FileRecord, names_of_role
from optimizer.artifacts.manifest import parse_manifest, shown
from optimizer.errors import BundleError
from protos.pull import MAX_FILE_BYTES, FileList

MAX_FILES: Final = 4096
MAX_FOLDERS: Final = 4  # that lie in one another


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedFiles:
    """The manifest as the server sent it, and the files that the edge needs, by name."""

    listed: FileList
    model_sha256: str
    records: Mapping[str, FileRecord]

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(record.num_bytes for record in self.records.values())


def wanted_files(listed: FileList) -> WantedFiles:
    """The files to fetch. Raises PeerError, in one line, for a list that is not safe or of no use.

    A folder where capital letters do not count must not lose a file either, so names that differ
    in nothing else count as the same.
    """
    try:
        manifest = parse_manifest(listed.manifest, source="the server's manifest")
    except BundleError as error:
        raise PeerError(f"the server's list of files is refused: {error}") from error
    names = list(names_of_role(manifest.files, "edge"))
    if PLAN_NAME not in names or not any(name.startswith("edge/") for name in names):
        raise PeerError("the server's bundle has no files for a device")
    if len(names) > MAX_FILES:
        raise PeerError(f"the server lists {len(names)} files, more than {MAX_FILES}")
    _check_places(names)
    for name in names:
        if manifest.files[name].num_bytes > MAX_FILE_BYTES:
            raise PeerError(f"the server lists {shown(name)} with more than {MAX_FILE_BYTES} bytes")
    return WantedFiles(
        listed=listed,
        model_sha256=manifest.model_sha256,
        records={name: manifest.files[name] for name in names},
    )


def _check_places(names: list[str]) -> None:
    """Raise PeerError for names that take each other's place, and for folders without end."""
    files = {_place(name): name for name in names}
    if len(files) < len(names):
        twice = next(name for name in names if files[_place(name)] != name)
        raise PeerError(f"the server lists {shown(twice)} twice")
    for name in names:
        parents = PurePosixPath(name).parents
        if len(parents) > MAX_FOLDERS + 1:
            raise PeerError(f"the server lists {shown(name)}, which lies too deep")
        if any(_place(str(parent)) in files for parent in parents):
            raise PeerError(f"the server lists {shown(name)} below a file")


def _place(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
