"""Every file of a bundle is pinned: what is missing, changed or outside is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.artifacts.bundle import EdgeSettings, open_bundle, sha256_of, write_manifest
from optimizer.errors import BundleError
from tests.optimizer.artifacts.test_plan import PLAN


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    for name in ("edge/front.onnx", "edge/edge.json", "cloud/config.json", "codec/split-3.tables"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    (root / "plan.yaml").write_text(PLAN.to_yaml())
    write_manifest(root)
    return root


def test_both_sides_open_what_was_written(bundle: Path) -> None:
    for role in ("edge", "cloud"):
        opened = open_bundle(bundle, role=role)
        assert opened.plan == PLAN
        assert set(opened.files) == {
            "plan.yaml",
            "edge/front.onnx",
            "edge/edge.json",
            "cloud/config.json",
            "codec/split-3.tables",
        }


def test_a_side_needs_only_its_own_files(bundle: Path) -> None:
    (bundle / "cloud" / "config.json").unlink()
    open_bundle(bundle, role="edge")
    with pytest.raises(BundleError, match=r"cloud/config\.json is missing"):
        open_bundle(bundle, role="cloud")


def damage_byte(root: Path) -> None:
    path = root / "edge" / "front.onnx"
    path.write_text(path.read_text().replace("content", "kontent"))


def grow(root: Path) -> None:
    path = root / "codec" / "split-3.tables"
    path.write_text(path.read_text() + "!")


def change_plan(root: Path) -> None:
    path = root / "plan.yaml"
    path.write_text(path.read_text().replace("kv_bits: 8", "kv_bits: 4"))


def drop_manifest(root: Path) -> None:
    (root / "manifest.json").unlink()


def break_manifest(root: Path) -> None:
    (root / "manifest.json").write_text("{")


def point_outside(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"num_bytes": 1, "sha256": "0" * 64}
    (root / "manifest.json").write_text(json.dumps(manifest))


def newer_format(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text()) | {"format": 2}
    (root / "manifest.json").write_text(json.dumps(manifest))


def another_model(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text()) | {"model_sha256": "1" * 64}
    (root / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damage_byte, r"edge/front\.onnx was changed"),
        (grow, r"codec/split-3\.tables has \d+ bytes"),
        (change_plan, r"plan\.yaml was changed"),
        (drop_manifest, r"manifest\.json is missing"),
        (break_manifest, "not a readable manifest"),
        (point_outside, "outside the bundle"),
        (newer_format, "bundle format 2"),
        (another_model, "different models"),
    ],
)
def test_harm_is_found_and_named(bundle: Path, harm: Callable[[Path], None], reason: str) -> None:
    harm(bundle)
    with pytest.raises(BundleError, match=reason):
        open_bundle(bundle, role="edge")


def test_hashes_are_those_of_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_edge_settings_come_back_and_nonsense_is_named(tmp_path: Path) -> None:
    settings = EdgeSettings(stop_token_ids=(2, 7), bos_token="<s>", eos_token="</s>")
    settings.save(tmp_path)
    assert EdgeSettings.load(tmp_path) == settings
    (tmp_path / "edge.json").write_text('{"stop_token_ids": [1], "extra": 3}')
    with pytest.raises(BundleError, match=r"edge\.json"):
        EdgeSettings.load(tmp_path)
