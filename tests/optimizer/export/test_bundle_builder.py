"""A bundle is built whole, opens on both sides, or leaves nothing behind."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edge.device.front import FrontEngine
from optimizer.artifacts.bundle import EdgeSettings, open_bundle
from optimizer.artifacts.plan import Plan
from optimizer.errors import BuildError, BundleError
from optimizer.export import bundle_builder
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.model_source import ModelSource, open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model("llama", folder)
    return open_source(folder)


def quiet(stage: str) -> None:
    """A progress callback that shows nothing."""


def test_a_built_bundle_opens_on_both_sides(source: ModelSource, tmp_path: Path) -> None:
    stages: list[str] = []
    plan = make_plan(source, 2)
    report = build_bundle(source, plan, tmp_path / "bundle", progress=stages.append)
    edge = open_bundle(report.bundle, role="edge")
    assert open_bundle(report.bundle, role="cloud").plan == edge.plan == plan
    assert {path.name for path in (edge.root / "edge").iterdir()} == {
        "front.onnx",
        "front.onnx.data",
        "front_check.json",
        "tokenizer.json",
        "chat_template.jinja",
        "edge.json",
    }
    assert EdgeSettings.load(edge.root / "edge").stop_token_ids == (2,)
    assert FrontEngine.load(edge.root / "edge", plan=plan)
    assert stages == ["tokenizer", "front", "back", "manifest"]


@pytest.mark.parametrize(("mask", "file_mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_alone_says_who_may_read_a_bundle(
    source: ModelSource, tmp_path: Path, mask: int, file_mode: int
) -> None:
    """A server in a container has another user than the one who built."""
    before = os.umask(mask)
    try:
        report = build_bundle(source, make_plan(source, 2), tmp_path / "b", progress=quiet)
    finally:
        os.umask(before)
    paths = [report.bundle, *report.bundle.rglob("*")]
    modes = {path: path.stat().st_mode & 0o777 for path in paths}
    assert {modes[path] for path in paths if path.is_file()} == {file_mode}
    assert {modes[path] for path in paths if path.is_dir()} == {0o777 & ~mask}


def test_the_report_says_sizes_and_peak_memory(source: ModelSource, tmp_path: Path) -> None:
    report = build_bundle(source, make_plan(source, 1), tmp_path / "b", progress=quiet)
    for side, reported in (("edge", report.edge_bytes), ("cloud", report.cloud_bytes)):
        files = (report.bundle / side).iterdir()
        assert reported == sum(path.stat().st_size for path in files)
    assert report.peak_memory_bytes > 50 << 20  # this process has torch loaded: bytes, not KiB


def test_the_whole_model_on_the_edge_has_no_cloud_folder(
    source: ModelSource, tmp_path: Path
) -> None:
    report = build_bundle(source, make_plan(source, 4), tmp_path / "bundle", progress=quiet)
    assert not (report.bundle / "cloud").exists()
    with pytest.raises(BundleError, match="nothing to serve"):
        open_bundle(report.bundle, role="cloud")


def test_a_failed_build_leaves_nothing_and_keeps_what_was_there(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: ModelSource, plan: Plan, folder: Path) -> None:
        raise BuildError("the disk is full")

    kept = build_bundle(source, make_plan(source, 1), tmp_path / "bundle", progress=quiet)
    before = (kept.bundle / "manifest.json").read_bytes()
    monkeypatch.setattr(bundle_builder, "write_back", fail)
    for name in ("bundle", "new"):
        with pytest.raises(BuildError, match="disk is full"):
            build_bundle(source, make_plan(source, 2), tmp_path / name, progress=quiet, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (kept.bundle / "manifest.json").read_bytes() == before


def test_a_bundle_is_replaced_only_when_asked(source: ModelSource, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    build_bundle(source, make_plan(source, 1), out, progress=quiet)
    with pytest.raises(BuildError, match="exists already"):
        build_bundle(source, make_plan(source, 2), out, progress=quiet)
    build_bundle(source, make_plan(source, 2), out, progress=quiet, force=True)
    assert open_bundle(out, role="edge").plan.partition.split == 2


def test_a_plan_for_another_model_is_refused(source: ModelSource, tmp_path: Path) -> None:
    make_tiny_model("qwen2", tmp_path / "other")
    other = open_source(tmp_path / "other")
    with pytest.raises(BuildError, match=f"{source.sha256[:12]}.*{other.sha256[:12]}"):
        build_bundle(other, make_plan(source, 1), tmp_path / "bundle", progress=quiet)
    assert not (tmp_path / "bundle").exists()


def test_a_template_that_cannot_be_parsed_is_said_and_the_bundle_still_opens(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = source.tokenizer_files()
    broken = replace(files, chat_template="{% for %}")
    monkeypatch.setattr(source, "tokenizer_files", lambda: broken)
    report = build_bundle(source, make_plan(source, 1), tmp_path / "b", progress=quiet)
    (warning,) = report.warnings
    assert "chat template does not work here (cannot be parsed" in warning
    assert open_bundle(report.bundle, role="edge").has("edge/chat_template.jinja")


def test_a_template_sees_the_models_own_pad_and_unknown_tokens(source: ModelSource) -> None:
    settings = source.tokenizer_files().settings
    assert settings.special_tokens == {"unk_token": "<unk>", "pad_token": "<pad>"}


def test_force_replaces_bundles_only(source: ModelSource, tmp_path: Path) -> None:
    plan = make_plan(source, 1)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "papers")
    for name in ("papers", "file", "link"):
        with pytest.raises(BuildError, match=rf"{name} is not a (bundle|folder)"):
            build_bundle(source, plan, tmp_path / name, progress=quiet, force=True)
    assert (tmp_path / "papers" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    build_bundle(source, plan, tmp_path / "empty", progress=quiet, force=True)


def test_the_report_names_files_that_are_no_part_of_the_checkpoint(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "model")
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "model" / "old.safetensors")
    found = open_source(tmp_path / "model")
    report = build_bundle(found, make_plan(found, 1), tmp_path / "bundle", progress=quiet)
    assert [line for line in report.warnings if "old.safetensors" in line]
