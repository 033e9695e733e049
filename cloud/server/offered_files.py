"""The files that a server offers to devices: the edge's side of the bundles that it has loaded.

A list is that of the manifest as it was when the server started. A request names a file by its
name in that list and in no other way. So nothing else of the machine can be read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from cloud.errors import PullError
from optimizer.artifacts.bundle import MANIFEST_NAME, Bundle, FileRecord, names_of_role
from optimizer.artifacts.manifest import parse_manifest, shown
from optimizer.errors import BundleError
from protos.bundle_names import bundles_line, is_named
from protos.messages import ServedBundle
from protos.pull import MAX_MANIFEST_BYTES, FetchRequest, FileList


class OfferedFiles:
    """Opens the listed files of one bundle. Safe from several threads: it never changes."""

    def __init__(self, root: Path, files: FileList, records: Mapping[str, FileRecord]) -> None:
        """records: of the files that a device needs, by their names in the manifest."""
        self.bundle = files.bundle
        self._root = root
        self._list = files
        self._records = dict(records)

    @classmethod
    def of(cls, bundle: Bundle, shown_as: ServedBundle | None = None) -> OfferedFiles:
        """What the bundle offers. shown_as: what the list says of it.

        Raises BundleError where its manifest is not what was opened.
        """
        path = bundle.root / MANIFEST_NAME
        files = FileList(manifest=path.read_bytes(), bundle=shown_as)
        listed = parse_manifest(files.manifest, source=str(path)).files
        is_shown = shown_as is None or shown_as.manifest_sha256 == files.sha256
        if listed != bundle.files or not is_shown:
            raise BundleError(f"{path}: has changed while the server started")
        names = names_of_role(listed, "edge")
        return cls(bundle.root, files, {name: listed[name] for name in names})

    @property
    def manifest_sha256(self) -> str:
        """What names this state of the bundle."""
        return self._list.sha256

    @property
    def names(self) -> frozenset[str]:
        """The names that a device may ask for."""
        return frozenset(self._records)

    def list(self) -> FileList:
        """The manifest. Raises PullError where a device could not get all that it needs."""
        if not any(name.startswith("edge/") for name in self._records):
            raise PullError("this server's bundle holds no files for a device (built --side cloud)")
        if len(self._list.manifest) > MAX_MANIFEST_BYTES:
            raise PullError("the manifest of this server's bundle is too large to send")
        for name in self._records:
            self.open(name).close()
        return self._list

    def record(self, request: FetchRequest) -> FileRecord:
        """The record of the file that is asked for. Raises PullError where it is not offered."""
        record = self._records.get(request.name)
        if record is None:
            raise PullError(f"this server offers no file {shown(request.name)}")
        if request.offset > record.num_bytes:
            raise PullError(f"{shown(request.name)} has {record.num_bytes} bytes")
        return record

    def open(self, name: str) -> BinaryIO:
        """A listed file, opened. Raises PullError where it is not there as it was listed."""
        path = self._root / name
        try:
            if not path.resolve().is_relative_to(self._root.resolve()):
                raise PullError(f"{name} leaves the bundle on this server")
            file = path.open("rb")
        except OSError as error:
            raise PullError(
                f"this server's copy of the bundle lacks {name}: copy the whole bundle to the "
                "server, or this file to the device"
            ) from error
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_size != self._records[name].num_bytes:
            file.close()
            raise PullError(f"{name} has changed on this server since it started")
        return file


class OfferedBundles:
    """The bundles of a server, each with the files that it offers. Never changes."""

    def __init__(self, offered: Sequence[OfferedFiles]) -> None:
        self._offered = tuple(offered)

    def __bool__(self) -> bool:
        return bool(self._offered)

    def named(self, wanted: str) -> OfferedFiles:
        """The bundle that `wanted` names; empty: the only one. Raises PullError, which lists them.

        The answer never depends on an order: where two bundles fit, neither is taken.
        """
        known = [one.bundle for one in self._offered if one.bundle is not None]
        if not wanted and len(self._offered) == 1:
            return self._offered[0]
        if not wanted:
            raise PullError(
                f"this server has {len(self._offered)} bundles, choose one with --model: "
                f"{bundles_line(known)}"
            )
        found = [one for one in self._offered if one.bundle and is_named(wanted, one.bundle)]
        if len(found) == 1:
            return found[0]
        fitting = [one.bundle for one in found if one.bundle is not None]
        why = "names no bundle" if not found else f"names {len(found)} bundles"
        raise PullError(
            f"{shown(wanted)} {why} of this server, choose one with --model: "
            f"{bundles_line(fitting or known)}"
        )

    def of(self, manifest_sha256: str) -> OfferedFiles:
        """The bundle whose manifest was listed. Raises PullError where it is none of these."""
        for one in self._offered:
            if one.manifest_sha256 == manifest_sha256:
                return one
        raise PullError("this server has another bundle now: pull again")

    def have_all(self) -> bool:
        """Whether a device would get all that it needs of each, as far as one can see now."""
        try:
            for one in self._offered:
                one.list()
        except PullError:
            return False
        return bool(self._offered)
