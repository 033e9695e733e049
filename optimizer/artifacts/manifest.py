"""The manifest: which files a bundle has, each pinned by its size and SHA-256.

Names are POSIX paths relative to the bundle, written in one way only: no empty part, no `.`, no
`..`, no backslash. So one file has one name, and no name leaves the bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import parse_json, read_json
from optimizer.artifacts.plan import load_plan
from optimizer.errors import BundleError

BUNDLE_FORMAT: Final = 1
MANIFEST_NAME: Final = "manifest.json"
PLAN_NAME: Final = "plan.yaml"
_MAX_NAME: Final = 255
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Size and hash of one file in the bundle."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `manifest.json` says. files: by name."""

    model_sha256: str
    files: Mapping[str, FileRecord]


def write_manifest(root: Path) -> None:
    """Hash every file below `root` except the manifest, and write `manifest.json`."""
    names = sorted(name for name in names_below(root) if name != MANIFEST_NAME)
    files = {name: _record_of(root / name) for name in names}
    _save(root, Manifest(model_sha256=load_plan(root / PLAN_NAME).model.sha256, files=files))


def record_files(root: Path, names: Iterable[str], *, without: Collection[str] = ()) -> None:
    """Hash the files `names`, which are new or changed, and put them into the manifest.

    without: names that it shall list no more, unless they are among `names`.

    The records of all other files stay as they are. So a change to one of those is still found.
    Raises BundleError for a manifest that is not readable.
    """
    manifest = read_manifest(root / MANIFEST_NAME)
    changed = {name: _record_of(root / name) for name in names}
    kept = {name: record for name, record in manifest.files.items() if name not in without}
    files = dict(sorted({**kept, **changed}.items()))
    _save(root, Manifest(model_sha256=manifest.model_sha256, files=files))


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest. Raises BundleError naming the file and the reason."""
    try:
        values = read_json(path)
    except ProfileError as error:
        raise BundleError(f"not a readable manifest: {error}") from error
    return _manifest(values, str(path))


def parse_manifest(data: bytes, *, source: str) -> Manifest:
    """As `read_manifest`, from bytes; `source` is the name that errors mention."""
    try:
        values = parse_json(data, source=source)
    except ProfileError as error:
        raise BundleError(f"not a readable manifest: {error}") from error
    return _manifest(values, source)


def _manifest(values: Any, source: str) -> Manifest:
    try:
        if values["format"] != BUNDLE_FORMAT or values["format"] is True:
            found = repr(values["format"])[:40]
            raise BundleError(
                f"{source}: bundle format {found}, this version reads {BUNDLE_FORMAT}"
            )
        files = {_checked(name): _record(name, value) for name, value in values["files"].items()}
        return Manifest(model_sha256=_text(values["model_sha256"]), files=files)
    except BundleError as error:
        prefix = "" if source in str(error) else f"{source}: "
        raise BundleError(f"{prefix}{error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{source}: not a readable manifest ({error!r})") from error


def names_below(root: Path, *, leave_out: Collection[str] = ()) -> Iterator[str]:
    """Names of everything below `root` that is no folder, without the top folders `leave_out`.

    Links to folders are not followed; they count as files.
    """
    for folder, subfolders, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        if not inside.parts:
            subfolders[:] = [name for name in subfolders if name not in leave_out]
        links = [name for name in subfolders if (Path(folder) / name).is_symlink()]
        for name in (*files, *links):
            yield (inside / name).as_posix()


def check_file(root: Path, name: str, record: FileRecord) -> None:
    """Raise BundleError unless the file is there, lies in the bundle and is as recorded."""
    path = root / name
    if not path.is_file():
        raise BundleError(f"{root}: {name} is missing (copy the bundle again, or build it again)")
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{root}: {name} is a link that leaves the bundle (copy the file here)")
    num_bytes = path.stat().st_size
    if num_bytes != record.num_bytes:
        raise BundleError(
            f"{root}: {name} has {num_bytes} bytes, the manifest says {record.num_bytes}"
        )
    if sha256_of(path) != record.sha256:
        raise BundleError(f"{root}: {name} was changed after the bundle was built (SHA-256)")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as lower-case hex, read in blocks."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shown(name: str) -> str:
    """A name from outside as an error shows it: quoted, on one line, not long."""
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _save(root: Path, manifest: Manifest) -> None:
    """Write the manifest beside itself first: a full disk leaves the old one."""
    values = {
        "format": BUNDLE_FORMAT,
        "model_sha256": manifest.model_sha256,
        "files": {name: asdict(record) for name, record in manifest.files.items()},
    }
    new = root / f"{MANIFEST_NAME}.new"
    try:
        new.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        new.replace(root / MANIFEST_NAME)
    finally:
        new.unlink(missing_ok=True)


def _record_of(path: Path) -> FileRecord:
    return FileRecord(num_bytes=path.stat().st_size, sha256=sha256_of(path))


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BundleError(f"the file name {shown(name)} lies outside the bundle")
    one_way = path.as_posix() == name and path.parts and "\\" not in name and name.isprintable()
    if not one_way or len(name.encode()) > _MAX_NAME or name == MANIFEST_NAME:
        raise BundleError(f"{shown(name)} is no name of a file in a bundle (build it again)")
    return name


def _record(name: str, value: Any) -> FileRecord:
    num_bytes, sha256 = value["num_bytes"], value["sha256"]
    if type(num_bytes) is not int or num_bytes < 0 or not _SHA256.fullmatch(_text(sha256)):
        raise BundleError(f"the record of {shown(name)} is not a size and a SHA-256")
    return FileRecord(num_bytes=num_bytes, sha256=sha256)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, not {type(value).__name__}")
    return value
