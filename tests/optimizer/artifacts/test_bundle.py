"""Every file of a bundle is pinned: what is missing, changed or outside is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.artifacts.bundle import (
    EdgeSettings,
    checked_files,
    open_bundle,
    record_files,
    sha256_of,
    write_manifest,
)
from optimizer.errors import BundleError, PlanError
from tests.optimizer.artifacts.onnx_bytes import model_with_external
from tests.optimizer.artifacts.test_plan import PLAN


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    for name in ("edge/front.onnx", "edge/edge.json", "cloud/config.json", "codec/split-3.tables"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    (root / "edge" / "front.onnx").write_bytes(model_with_external("front.onnx.data"))
    (root / "edge" / "front.onnx.data").write_bytes(b"weights")
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
            "edge/front.onnx.data",
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
    (root / "edge" / "front.onnx.data").write_bytes(b"Weights")


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
        (damage_byte, r"edge/front\.onnx\.data was changed"),
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
    for text in (
        '{"stop_token_ids": [1], "extra": 3}',
        '{"stop_token_ids": [1], "stop_token_ids": [2]}',
        '{"stop_token_ids": [1.5]}',
        '{"stop_token_ids": [1], "bos_token": 7}',
        '{"stop_token_ids": [1], "bos_token": "\\ud83d"}',
        "[" * 5000,
    ):
        (tmp_path / "edge.json").write_text(text)
        with pytest.raises(BundleError, match=r"edge\.json"):
            EdgeSettings.load(tmp_path)


def test_edge_settings_of_the_last_version_are_read(tmp_path: Path) -> None:
    old = '{"stop_token_ids": [2], "bos_token": "<s>", "eos_token": null}'
    (tmp_path / "edge.json").write_text(old)
    assert EdgeSettings.load(tmp_path) == EdgeSettings(stop_token_ids=(2,), bos_token="<s>")


@pytest.mark.parametrize(
    "name",
    [
        "edge/extra.txt",
        "edge/deeper/front.onnx.data",
        "codec/split-4.tables",
        "codec/split-3.quality.json",
        "draft/head.onnx",
        "manifest.json.bak",
        "edge/manifest.json",
        "edge/.front.onnx.swp",
    ],
)
def test_a_file_that_is_not_listed_refuses_the_bundle(bundle: Path, name: str) -> None:
    path = bundle / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("more")
    with pytest.raises(BundleError, match=r"is not listed in manifest\.json \(remove it") as caught:
        open_bundle(bundle, role="edge")
    assert name in str(caught.value)


def test_weights_that_are_not_listed_refuse_the_server_and_not_the_device(bundle: Path) -> None:
    (bundle / "cloud" / "a.safetensors").write_bytes(b"")
    open_bundle(bundle, role="edge")
    with pytest.raises(BundleError, match=r"cloud/a\.safetensors' is not listed"):
        open_bundle(bundle, role="cloud")


def test_links_that_leave_the_bundle_refuse_it(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (bundle / "edge" / "front.onnx.data").rename(outside)
    (bundle / "edge" / "front.onnx.data").symlink_to(outside)
    with pytest.raises(BundleError, match=r"front\.onnx\.data is a link that leaves the bundle"):
        open_bundle(bundle, role="edge")


def test_a_linked_folder_refuses_the_bundle(bundle: Path, tmp_path: Path) -> None:
    (bundle / "codec").rename(tmp_path / "codec")
    (bundle / "codec").symlink_to(tmp_path / "codec")
    with pytest.raises(BundleError, match=r"'codec' is not listed|leaves the bundle"):
        open_bundle(bundle, role="edge")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a//b",
        "./edge/x",
        "edge/./x",
        "edge/../x",
        "edge/",
        "/etc/passwd",
        "edge\\x",
        "edge/a\nb",
        "edge/a\x00b",
        "manifest.json",
        "edge/" + "x" * 300,
    ],
)
def test_manifest_names_have_one_spelling_inside_the_bundle(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"num_bytes": 1, "sha256": "0" * 64}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"outside the bundle|no name of a file") as caught:
        open_bundle(bundle, role="edge")
    assert "\n" not in str(caught.value)
    assert "manifest.json" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "[" * 100_000,
        '{"format": 1, "model_sha256": "x", "files": {"a": 1}}',
        '{"format": 1, "model_sha256": "x", "files": []}',
        '{"format": 1, "model_sha256": 7, "files": {}}',
        '{"format": 1, "format": 1, "model_sha256": "x", "files": {}}',
        '{"format": true, "model_sha256": "x", "files": {}}',
        '{"format": 1e999, "model_sha256": "x", "files": {}}',
        '{"format": NaN, "model_sha256": "x", "files": {}}',
        '{"format": 1, "model_sha256": "x", "files": {"a": {"num_bytes": 1' + "0" * 400 + "}}}",
        '{"format": 1, "model_sha256": "x", "files": {"a": {"num_bytes": -1, "sha256": "0"}}}',
        '{"format": 1, "model_sha256": "x", "files": {"a": {"num_bytes": 1.5, "sha256": "0"}}}',
        '{"format": 1, "model_sha256": "\\ud83d", "files": {}}',
        '{"format": 1, "model_sha256": "x", "files": {"\\ud83d": {}}}',
    ],
)
def test_a_hostile_manifest_is_one_line(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle, role="edge")
    message = str(caught.value)
    assert "manifest.json" in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../secret",
        "other.data",
        "",
        "deeper/x",
        "*/_ORT_MEM_ADDR_/*",
        "./front.onnx",
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_front_takes_weights_from_listed_files_beside_it_only(
    bundle: Path, location: str, nested: bool
) -> None:
    model = model_with_external(location, nested=nested)
    (bundle / "edge" / "front.onnx").write_bytes(model)
    write_manifest(bundle)
    with pytest.raises(BundleError, match=r"front\.onnx takes weights from .* no listed file"):
        open_bundle(bundle, role="edge")


def test_a_handle_opens_listed_names_of_its_side_only(bundle: Path) -> None:
    opened = open_bundle(bundle, role="edge")
    assert opened.path("edge/edge.json") == bundle / "edge" / "edge.json"
    assert opened.paths("codec", ".tables") == (bundle / "codec" / "split-3.tables",)
    assert opened.read_text("edge/edge.json") == "content of edge/edge.json"
    for name in ("edge/none", "cloud/config.json", "../x"):
        assert not opened.has(name)
        with pytest.raises(BundleError, match="lists no"):
            opened.path(name)


def test_a_recorded_file_leaves_the_other_records_as_they_are(bundle: Path) -> None:
    """A new certificate must not vouch for weights that somebody has changed."""
    (bundle / "codec" / "split-3.quality.json").write_text("{}")
    (bundle / "edge" / "edge.json").write_text("changed")
    record_files(bundle, ["codec/split-3.quality.json"])
    with pytest.raises(BundleError, match=r"edge/edge\.json"):
        open_bundle(bundle, role="edge")
    write_manifest(bundle)
    open_bundle(bundle, role="edge")


def test_a_reader_of_one_kind_of_file_gets_checked_and_listed_ones(bundle: Path) -> None:
    assert checked_files(bundle, "codec", ".tables") == (bundle / "codec" / "split-3.tables",)
    (bundle / "codec" / "split-9.quality.json").write_text("{}")
    with pytest.raises(BundleError, match="not listed"):
        checked_files(bundle, "codec", ".quality.json")


def test_a_plan_of_a_thousand_million_layers_is_refused(bundle: Path) -> None:
    path = bundle / "plan.yaml"
    path.write_text(path.read_text().replace("num_layers: ", "num_layers: 1000000000"))
    with pytest.raises(PlanError, match="num_layers must lie between"):
        write_manifest(bundle)
