"""Weights that a bundle does not hold: where they lie, and how to tell that they are the same.

    cloud/weights.json: the model's folder, its safetensors files, and the tensors to read

A file is told by its size, the time of its last change, the SHA-256 of its header (names, types,
shapes) and the SHA-256 of all of it. A server that loads compares the first three, which takes no
time. Where the time differs, it reads the whole file once and compares the full hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json
from optimizer.artifacts.manifest import sha256_of, shown
from optimizer.errors import BundleError

# auto: a reference where the model's files can be read as they are, else a copy.
WeightsPlace = Literal["auto", "reference", "copy"]
REFERENCE_NAME: Final = "weights.json"
_FORMAT: Final = 1
_MOST_BYTES: Final = 64 << 20
_MOST_HEADER: Final = 100_000_000
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CURE: Final = (
    "put the model back where it was, or build the bundle again (with --weights copy it holds the "
    "weights itself, and can be moved to another machine)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencedFile:
    """One safetensors file as it was when the bundle was built. mtime_ns: its last change."""

    num_bytes: int
    mtime_ns: int
    header_sha256: str
    sha256: str

    @classmethod
    def of(cls, path: Path, *, sha256: str | None = None) -> ReferencedFile:
        """The file as it is now. sha256: where somebody has hashed it already."""
        facts = path.stat()
        return cls(
            num_bytes=facts.st_size,
            mtime_ns=facts.st_mtime_ns,
            header_sha256=header_sha256(path),
            sha256=sha256 or sha256_of(path),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReference:
    """Where a back's weights are. folder: absolute. files: by plain name.

    tensors: by Hugging Face's name, the file and the tensor's name in it. back_bits: what the
    server makes of them as it loads: the same codes that a copy would hold.
    """

    folder: Path
    back_bits: int
    files: Mapping[str, ReferencedFile]
    tensors: Mapping[str, tuple[str, str]]

    def save(self, path: Path) -> None:
        """Write the file."""
        values = {
            "format": _FORMAT,
            "folder": str(self.folder),
            "back_bits": self.back_bits,
            "files": {name: asdict(file) for name, file in self.files.items()},
            "tensors": {name: list(place) for name, place in self.tensors.items()},
        }
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> WeightReference:
        """Read and check the file. Raises BundleError, naming it."""
        try:
            values = read_json(path, max_bytes=_MOST_BYTES)
        except ProfileError as error:
            raise BundleError(f"not a readable reference to weights: {error}") from error
        try:
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']!r:.40}, this version reads {_FORMAT}")
            if values["back_bits"] not in (8, 16, 32) or not Path(values["folder"]).is_absolute():
                raise ValueError("no proper bits or folder")
            files = {_plain(name): _file(entry) for name, entry in values["files"].items()}
            tensors = {
                str(name): (_plain(place[0]), str(place[1]))
                for name, place in values["tensors"].items()
            }
            strange = next((file for file, _ in tensors.values() if file not in files), None)
            if strange is not None:
                raise ValueError(f"{shown(strange)} is not among its files")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            reason = " ".join(str(error).split())[:120]
            raise BundleError(f"{path}: not a readable reference to weights ({reason})") from error
        return cls(
            folder=Path(values["folder"]),
            back_bits=values["back_bits"],
            files=files,
            tensors=tensors,
        )

    def check(self, *, verify: bool = False) -> None:
        """Raises BundleError, with the cure, where a file is gone or is another.

        verify: read every file and compare its full hash, whatever its time says.
        """
        if not self.folder.is_dir():
            raise BundleError(f"{self.folder}: the bundle's weights are not there; {_CURE}")
        for name, file in self.files.items():
            path = self.folder / name
            if not path.is_file():
                raise BundleError(f"{path}: the bundle reads its weights, but it is gone; {_CURE}")
            facts = path.stat()
            same = facts.st_size == file.num_bytes and header_sha256(path) == file.header_sha256
            if same and (verify or facts.st_mtime_ns != file.mtime_ns):
                same = sha256_of(path) == file.sha256
            if not same:
                raise BundleError(
                    f"{path}: has changed since the bundle was built from it; {_CURE}"
                )


def header_sha256(path: Path) -> str:
    """SHA-256 of a safetensors file's header and its length."""
    with path.open("rb") as stream:
        start = stream.read(8)
        length = min(int.from_bytes(start, "little"), _MOST_HEADER)
        return hashlib.sha256(start + stream.read(length)).hexdigest()


def _plain(name: str) -> str:
    if not name or Path(name).name != name or "\0" in name or not name.endswith(".safetensors"):
        raise ValueError(f"{shown(name)} is no plain name of a safetensors file")
    return name


def _file(entry: Any) -> ReferencedFile:
    file = ReferencedFile(**entry)
    sizes = (file.num_bytes, file.mtime_ns)
    hashes = (file.header_sha256, file.sha256)
    if any(type(size) is not int for size in sizes):
        raise ValueError("a size is no whole number")
    if not all(isinstance(value, str) and _SHA256.fullmatch(value) for value in hashes):
        raise ValueError("a hash is no SHA-256")
    return file
