"""The bundle: a folder with everything one side needs, every file pinned by its SHA-256.

    BUNDLE/
      plan.yaml           what was decided
      edge/               front.onnx (+ data), tokenizer.json, chat_template.jinja, edge.json;
                          front-N.onnx (+ data) for a further segment, which begins at layer N
      cloud/              config.json, the back's weights, and tokenizer.json for grammars
                          (absent when the edge holds it all)
      draft/              a draft head for the edge, made by `splitpoint train-draft` (optional)
      codec/              tables of the calibrated compression levels, one file a split, and
                          further ones by name in folders (optional; `codec_tables`)
      manifest.json       format, model hash, and size and SHA-256 of every file above

A device needs `plan.yaml`, `manifest.json`, `codec/`, `edge/` and `draft/`. A copy may leave out
the other side's folder, so each side checks only the files that it loads.

Only files that the manifest lists are opened. `open_bundle` refuses a bundle with any other file,
and gives a handle that turns a listed name into a path. Nothing looks for files in the folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final, Literal

from optimizer.artifacts.codec_tables import (
    DEFAULT_TABLES,
    check_splits,
    listed_tables,
    tables_name,
)
from optimizer.artifacts.edge_settings import EDGE_SETTINGS_NAME, EdgeSettings
from optimizer.artifacts.manifest import (
    BUNDLE_FORMAT,
    MANIFEST_NAME,
    PLAN_NAME,
    FileRecord,
    check_file,
    names_below,
    parse_manifest,
    read_manifest,
    record_files,
    sha256_of,
    shown,
    write_manifest,
)
from optimizer.artifacts.onnx_files import external_files
from optimizer.artifacts.plan import Plan, load_plan
from optimizer.errors import BundleError

__all__ = [
    "BUNDLE_FORMAT",
    "DEFAULT_TABLES",
    "EDGE_SETTINGS_NAME",
    "FRONT_NAME",
    "MANIFEST_NAME",
    "PLAN_NAME",
    "TEMPLATE_NAME",
    "Bundle",
    "EdgeSettings",
    "FileRecord",
    "Role",
    "checked_files",
    "front_names",
    "names_of_role",
    "open_bundle",
    "parse_manifest",
    "record_files",
    "sha256_of",
    "tables_name",
    "write_manifest",
]

FRONT_NAME: Final = "front.onnx"  # in edge/; its weights are beside it, in front.onnx.data
# How far the front's layers are from transformers'. For people; nothing reads it.
# A key of a front's file: the model's channel at each place of a cached key, -1 for padding.
KEY_CHANNELS: Final = "key_channels"
# The input of a front with `Plan.max_positions`: the position of each row, int64 [1, T].
POSITIONS_INPUT: Final = "position_ids"
FRONT_CHECK_NAME: Final = "edge/front_check.json"
TEMPLATE_NAME: Final = "edge/chat_template.jinja"
Role = Literal["edge", "cloud"]

# The top-level names that each side loads.
_OPENED: Final[Mapping[Role, frozenset[str]]] = {
    "edge": frozenset({PLAN_NAME, "codec", "edge", "draft"}),
    "cloud": frozenset({PLAN_NAME, "codec", "cloud"}),
}
# The draft head that a server of the bundle runs, an EAGLE head as published.
DRAFT_HEAD_FOLDER: Final = "cloud/draft-head"
_TEXT_BYTES: Final = 1 << 20  # of a chat template


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An opened and checked bundle of one side. files: by POSIX path relative to `root`."""

    root: Path
    role: Role
    plan: Plan
    files: Mapping[str, FileRecord]

    def has(self, name: str) -> bool:
        """Whether the manifest lists this file of the side that the bundle was opened for."""
        return name in self.files and _top(name) in _OPENED[self.role]

    def path(self, name: str) -> Path:
        """Where a listed file lies. Raises BundleError for a file that is not listed."""
        if not self.has(name):
            raise BundleError(f"{self.root}: {MANIFEST_NAME} lists no {shown(name)} to load")
        return self.root / name

    def paths(self, folder: str, suffix: str) -> tuple[Path, ...]:
        """The listed files right in `folder` whose names end in `suffix`, sorted by name."""
        return tuple(
            self.path(name)
            for name in sorted(self.files)
            if PurePosixPath(name).parent.as_posix() == folder and name.endswith(suffix)
        )

    def codec_tables(self) -> dict[str, dict[int, Path]]:
        """The codec tables by name, then by split: "default" first, empty where there are none.

        Raises BundleError for names that cannot be, for too many, and for named tables that lack a
        split of the plan.
        """
        try:
            listed = listed_tables([name for name in self.files if self.has(name)])
            splits = [] if self.plan.edge_is_whole else self.plan.splits
            for name, files in listed.items():
                check_splits(name, files, splits)
        except BundleError as error:
            raise BundleError(f"{self.root}: {error}") from error
        return {
            name: {split: self.path(file) for split, file in files.items()}
            for name, files in listed.items()
        }

    def read_text(self, name: str) -> str:
        """A listed text file (UTF-8, with or without BOM). Raises BundleError."""
        path = self.path(name)
        if self.files[name].num_bytes > _TEXT_BYTES:
            raise BundleError(f"{path}: larger than {_TEXT_BYTES >> 10} KiB")
        try:
            return path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BundleError(f"{path}: not UTF-8 ({error})") from error


def front_names(plan: Plan) -> tuple[str, ...]:
    """The files in `edge/` of the front's segments, the one with the embedding first."""
    return (FRONT_NAME, *(f"front-{begin}.onnx" for begin in plan.segment_ends[:-1]))


def open_bundle(root: Path, *, role: Role) -> Bundle:
    """Open `root` for one side, and check the hash of every file that this side will load.

    Raises BundleError naming the file that is missing, changed, not listed or in the wrong place,
    and PlanError for a plan that is not readable.
    """
    manifest_path = root / MANIFEST_NAME
    if not root.is_dir():
        raise BundleError(f"{root}: no such bundle folder (make one with 'splitpoint build')")
    if not manifest_path.is_file():
        raise BundleError(f"{root}: not a bundle, {MANIFEST_NAME} is missing")
    manifest = read_manifest(manifest_path)
    files = manifest.files
    if PLAN_NAME not in files:
        raise BundleError(f"{manifest_path}: lists no {PLAN_NAME}")
    _check_nothing_else(root, files, role)
    for name in names_of_role(files, role):
        check_file(root, name, files[name])
    for name in names_of_role(files, role):
        if name.endswith(".onnx"):
            _check_external_files(root, name, files)
    plan = load_plan(root / PLAN_NAME)
    if plan.model.sha256 != manifest.model_sha256:
        raise BundleError(f"{root}: {PLAN_NAME} and {MANIFEST_NAME} name different models")
    if role == "cloud" and plan.edge_is_whole:
        raise BundleError(
            f"{root}: split {plan.partition.split} puts the whole model on the edge; "
            "there is nothing to serve"
        )
    if not any(_top(name) == role for name in files):
        raise BundleError(f"{root}: the manifest lists no files for the {role}")
    return Bundle(root=root, role=role, plan=plan, files=MappingProxyType(dict(files)))


def checked_files(root: Path, folder: str, suffix: str) -> tuple[Path, ...]:
    """The listed files right in one folder of a bundle whose names end in `suffix`, checked.

    For a planner, which needs a few figures and no other file of the bundle. It may also have them
    in a folder without a manifest; all such files are taken then. Raises BundleError for a file
    that is missing or changed, and for one that is not listed.
    """
    if not (root / MANIFEST_NAME).is_file():
        return tuple(sorted((root / folder).glob(f"*{suffix}")))
    files = read_manifest(root / MANIFEST_NAME).files
    for name in sorted(names_below(root)):
        if PurePosixPath(name).parent.as_posix() == folder and name not in files:
            raise _not_listed(root, name)
    names = [
        name
        for name in sorted(files)
        if PurePosixPath(name).parent.as_posix() == folder and name.endswith(suffix)
    ]
    for name in names:
        check_file(root, name, files[name])
    return tuple(root / name for name in names)


def _top(name: str) -> str:
    return PurePosixPath(name).parts[0]


def names_of_role(files: Mapping[str, FileRecord], role: Role) -> Iterator[str]:
    """The names among a manifest's `files` that one side loads, in the manifest's order."""
    return (name for name in files if _top(name) in _OPENED[role])


def _check_nothing_else(root: Path, files: Collection[str], role: Role) -> None:
    """BundleError for a file that the manifest does not list; the other side's are not looked at.

    The other side's folder may be half copied, and nothing in it is opened here.
    """
    other: Role = "cloud" if role == "edge" else "edge"
    not_opened = _OPENED[other] - _OPENED[role]
    for name in sorted(names_below(root, leave_out=not_opened)):
        if name not in files and name != MANIFEST_NAME:
            raise _not_listed(root, name)


def _not_listed(root: Path, name: str) -> BundleError:
    return BundleError(
        f"{root}: {shown(name)} is not listed in {MANIFEST_NAME} "
        "(remove it, or build the bundle again)"
    )


def _check_external_files(root: Path, name: str, files: Collection[str]) -> None:
    """BundleError where a model points to weights that are not a listed file beside it."""
    folder = PurePosixPath(name).parent
    for location in sorted(external_files(root / name)):
        beside = "/" not in location and (folder / location).as_posix() in files
        if not beside:
            raise BundleError(
                f"{root}: {name} takes weights from {shown(location)}, which is no listed file "
                f"in {folder}/ (build the bundle again)"
            )
