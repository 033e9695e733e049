"""Bundles that the device fetched by itself: one folder a server, or a named bundle of one.

    CACHE/bundles/KEY/server.json    the address
    CACHE/bundles/KEY/bundle/        the bundle
    CACHE/bundles/KEY/.bundle.pull/  while it is fetched, and after an interruption

CACHE is `--cache-dir`, else $XDG_CACHE_HOME/splitpoint, else ~/.cache/splitpoint (XDG Base
Directory Specification 0.8).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge.cache_folder import cache_folder
from edge.errors import InputError
from edge.pull.safe_writing import replace_file
from edge.pull.staging import Staging
from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json
from optimizer.artifacts.bundle import MANIFEST_NAME

_ADDRESS_NAME: Final = "server.json"
_BUNDLE_NAME: Final = "bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedBundle:
    """One server's place in the cache. folder: of the bundle; it may be missing.

    address: HOST:PORT, and behind a space the bundle's name where one was named.
    """

    address: str
    folder: Path

    @property
    def is_there(self) -> bool:
        """Whether a whole bundle was fetched once."""
        return (self.folder / MANIFEST_NAME).is_file()

    @property
    def num_bytes(self) -> int:
        """Bytes of all of its files, partial ones too."""
        files = (path for path in self.folder.parent.rglob("*") if path.is_file())
        return sum(path.lstat().st_size for path in files)

    def begin(self) -> None:
        """Note the address, and keep others out: once the place is made, under its lock."""
        place = self.folder.parent
        place.chmod(0o700)
        if not (place / _ADDRESS_NAME).exists():
            replace_file(place / _ADDRESS_NAME, json.dumps({"address": self.address}).encode())

    def remove(self) -> None:
        """Delete it, once no pull into it runs."""
        with Staging(self.folder) as staging:
            shutil.rmtree(self.folder, ignore_errors=True)
            staging.remove()
        shutil.rmtree(self.folder.parent, ignore_errors=True)


class BundleCache:
    """The cache's folder. Nothing is made before a bundle is fetched."""

    def __init__(self, root: Path) -> None:
        self._bundles = root / "bundles"

    def place(self, address: str, bundle: str = "") -> CachedBundle:
        """The server's place. address: HOST:PORT. bundle: one of several there, as it was named."""
        named = f"{address} {bundle}" if bundle else address
        plain = re.sub(r"[^A-Za-z0-9.-]", "_", named)[:80]
        key = f"{plain}-{hashlib.sha256(named.encode()).hexdigest()[:8]}"
        return CachedBundle(address=named, folder=self._bundles / key / _BUNDLE_NAME)

    def entries(self) -> Iterator[CachedBundle]:
        """All places, by the name of their folder."""
        for folder in sorted(self._bundles.iterdir()) if self._bundles.is_dir() else ():
            try:
                address = str(read_json(folder / _ADDRESS_NAME)["address"])
            except (ProfileError, KeyError, TypeError):
                address = folder.name
            yield CachedBundle(address=address, folder=folder / _BUNDLE_NAME)


def cache_root(given: Path | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The cache's folder. Raises InputError where nothing says where it is."""
    if given is not None:
        return given
    folder = cache_folder(environment)
    if folder is not None:
        return folder
    raise InputError(
        "no home folder to keep the server's bundle in: give --cache-dir DIR (or set "
        "SPLITPOINT_CACHE_DIR or XDG_CACHE_HOME), or a bundle"
    )
