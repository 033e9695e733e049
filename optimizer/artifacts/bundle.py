"""The bundle: a folder with everything one side needs, every file pinned by its SHA-256.

    BUNDLE/
      plan.yaml           what was decided
      edge/               front.onnx (+ data), tokenizer.json, chat_template.jinja, edge.json
      cloud/              config.json and the back's weights (absent when the edge holds it all)
      draft/              a draft head for the edge, made by `splitpoint train-draft` (optional)
      codec/              tables of the calibrated compression levels, one file a split (optional)
      manifest.json       format, model hash, and size and SHA-256 of every file above

A device needs `plan.yaml`, `manifest.json`, `codec/`, `edge/` and `draft/`. A copy may leave out
the other side's folder, so each side checks only the files that it loads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Final, Literal

from optimizer.artifacts.plan import Plan, load_plan
from optimizer.errors import BundleError

BUNDLE_FORMAT: Final = 1
MANIFEST_NAME: Final = "manifest.json"
PLAN_NAME: Final = "plan.yaml"
EDGE_SETTINGS_NAME: Final = "edge.json"
FRONT_NAME: Final = "front.onnx"  # in edge/; its weights are beside it, in front.onnx.data
Role = Literal["edge", "cloud"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Size and hash of one file in the bundle."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """`edge/edge.json`: what the device must know of the model besides plan and tokenizer."""

    stop_token_ids: tuple[int, ...]
    bos_token: str | None = None
    eos_token: str | None = None

    def save(self, edge_dir: Path) -> None:
        """Write `edge.json` into the folder."""
        (edge_dir / EDGE_SETTINGS_NAME).write_text(
            json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, edge_dir: Path) -> EdgeSettings:
        """Read `edge.json` of the folder. Raises BundleError naming the file."""
        path = edge_dir / EDGE_SETTINGS_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "stop_token_ids": tuple(map(int, values["stop_token_ids"]))})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: not readable edge settings ({error!r})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An opened and checked bundle. files: by POSIX path relative to `root`."""

    root: Path
    plan: Plan
    files: Mapping[str, FileRecord]

    @property
    def edge_dir(self) -> Path:
        """What the device loads."""
        return self.root / "edge"

    @property
    def cloud_dir(self) -> Path:
        """What the server loads."""
        return self.root / "cloud"

    @property
    def draft_dir(self) -> Path:
        """The draft head, if one was trained."""
        return self.root / "draft"

    @property
    def codec_dir(self) -> Path:
        """Tables and certificates of the compression levels, one file a split."""
        return self.root / "codec"


def write_manifest(root: Path) -> None:
    """Hash every file below `root` except the manifest, and write `manifest.json`."""
    plan = load_plan(root / PLAN_NAME)
    files = {
        path.relative_to(root).as_posix(): {
            "num_bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }
    manifest = {"format": BUNDLE_FORMAT, "model_sha256": plan.model.sha256, "files": files}
    (root / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def open_bundle(root: Path, *, role: Role) -> Bundle:
    """Open `root` for one side, and check the hash of every file that this side will load.

    Raises BundleError naming the file that is missing, changed or in the wrong place, and PlanError
    for a plan that is not readable.
    """
    manifest_path = root / MANIFEST_NAME
    if not root.is_dir():
        raise BundleError(f"{root}: no such bundle folder (make one with 'splitpoint build')")
    if not manifest_path.is_file():
        raise BundleError(f"{root}: not a bundle, {MANIFEST_NAME} is missing")
    files, model_sha256 = _read_manifest(manifest_path)
    for name in _names_of_role(files, role):
        _check_file(root, name, files[name])
    if PLAN_NAME not in files:
        raise BundleError(f"{manifest_path}: lists no {PLAN_NAME}")
    plan = load_plan(root / PLAN_NAME)
    if plan.model.sha256 != model_sha256:
        raise BundleError(f"{root}: {PLAN_NAME} and {MANIFEST_NAME} name different models")
    if role == "cloud" and plan.edge_is_whole:
        raise BundleError(
            f"{root}: split {plan.partition.split} puts the whole model on the edge; "
            "there is nothing to serve"
        )
    if not any(name.startswith(f"{role}/") for name in files):
        raise BundleError(f"{root}: the manifest lists no files for the {role}")
    return Bundle(root=root, plan=plan, files=MappingProxyType(files))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as lower-case hex, read in blocks."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(path: Path) -> tuple[dict[str, FileRecord], str]:
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != BUNDLE_FORMAT:
            raise BundleError(
                f"{path}: bundle format {manifest['format']}, this version reads {BUNDLE_FORMAT}"
            )
        files = {
            str(name): FileRecord(num_bytes=int(record["num_bytes"]), sha256=str(record["sha256"]))
            for name, record in manifest["files"].items()
        }
        return files, str(manifest["model_sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: not a readable manifest ({error!r})") from error


def _names_of_role(files: Mapping[str, FileRecord], role: Role) -> Iterator[str]:
    for name in files:
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts:
            raise BundleError(f"{MANIFEST_NAME}: {name!r} lies outside the bundle")
        if parts[0] in (role, "codec", PLAN_NAME) or (role == "edge" and parts[0] == "draft"):
            yield name


def _check_file(root: Path, name: str, record: FileRecord) -> None:
    path = root / name
    if not path.is_file():
        raise BundleError(f"{root}: {name} is missing")
    if path.stat().st_size != record.num_bytes:
        raise BundleError(
            f"{root}: {name} has {path.stat().st_size} bytes, the manifest says {record.num_bytes}"
        )
    if sha256_of(path) != record.sha256:
        raise BundleError(f"{root}: {name} was changed after the bundle was built (SHA-256)")
