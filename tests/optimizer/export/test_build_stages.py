"""A build that was killed in any stage goes on, and makes the bytes of one that was not."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path

import pytest

from optimizer.artifacts.bundle import open_bundle
from optimizer.export.build_stages import STAGES_NAME, stages_left_of
from optimizer.export.bundle_builder import Calibration, build_bundle
from optimizer.export.sources.model_source import ModelSource, open_source
from tests import warm_python
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model

STAGES = ("tokenizer", "front", "back", "calibration", "manifest")
BUILD = """
import os, signal, sys
from pathlib import Path
from optimizer.export import bundle_builder
from optimizer.export.bundle_builder import Calibration, build_bundle
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_plan

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
def killed_at(stage):
    if stage.startswith(sys.argv[3]):
        os.kill(os.getpid(), int(sys.argv[4]))

source = open_source(Path(sys.argv[1]))
build_bundle(source, make_plan(source, 2, front_bits=4, back_bits=8), Path(sys.argv[2]),
             progress=killed_at, calibration=Calibration(text=sys.argv[5]), resume=True)
"""
TEXT = " ".join(f"The {n}th line says {n * n}." for n in range(60))  # two windows of bytes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model("llama", folder)
    return open_source(folder)


@pytest.fixture(scope="module")
def whole(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a build that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "bundle"
    build(source, out)
    return contents(out)


def build(source: ModelSource, out: Path, *, text: str = TEXT) -> list[str]:
    """Resume or begin; the stages that were told."""
    stages: list[str] = []
    build_bundle(
        source,
        make_plan(source, 2, front_bits=4, back_bits=8),
        out,
        progress=stages.append,
        calibration=Calibration(text=text),
        resume=True,
    )
    return [stage for stage in stages if stage.split(" (")[0] in STAGES]


def contents(bundle: Path) -> dict[str, str]:
    return {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in bundle.rglob("*")
        if path.is_file()
    }


def interrupted(source: ModelSource, out: Path, stage: str, number: int) -> None:
    """A build in another process that a signal ends when `stage` begins."""
    done = warm_python.run(BUILD, [source.place, out, stage, number, TEXT])
    assert done.returncode != 0
    assert not out.exists()


@pytest.mark.parametrize("stage", ["front", "back", "reading gradients", "manifest"])
def test_a_killed_build_resumes_to_the_same_bytes(
    source: ModelSource, whole: dict[str, str], tmp_path: Path, stage: str
) -> None:
    out = tmp_path / "bundle"
    interrupted(source, out, stage, signal.SIGKILL)
    told = build(source, out)
    begun = STAGES.index("calibration" if stage not in STAGES else stage)
    assert told == [f"{name} (kept)" for name in STAGES[:begun]] + list(STAGES[begun:])
    assert contents(out) == whole
    assert open_bundle(out, role="edge").has("codec/split-2.tables")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_ctrl_c_leaves_what_is_done_for_resume(
    source: ModelSource, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    interrupted(source, out, "back", signal.SIGINT)
    assert stages_left_of(out) == ["tokenizer", "front"]
    assert stages_left_of(tmp_path / "other") == []
    assert build(source, out)[:2] == ["tokenizer (kept)", "front (kept)"]
    assert contents(out) == whole


def test_other_inputs_take_nothing_over(
    source: ModelSource, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    interrupted(source, out, "manifest", signal.SIGKILL)
    assert build(source, out, text=TEXT.upper()) == list(STAGES)
    assert contents(out)["codec/split-2.tables"] != whole["codec/split-2.tables"]


def test_a_half_made_or_damaged_stage_is_made_again(
    source: ModelSource, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    interrupted(source, out, "calibration", signal.SIGKILL)
    (working,) = tmp_path.glob(".bundle-*")
    (working / "bundle" / "cloud" / "back-00001.safetensors").write_bytes(b"half")
    (working / "bundle" / "edge" / "left-over").touch()
    told = build(source, out)
    assert told == ["tokenizer (kept)", "front (kept)", "back", "calibration", "manifest"]
    assert contents(out) == whole
    interrupted(source, tmp_path / "other", "back", signal.SIGKILL)
    (working,) = tmp_path.glob(".other-*")
    (working / STAGES_NAME).write_text("{")
    assert build(source, tmp_path / "other") == list(STAGES)


def test_a_build_without_resume_begins_anew(source: ModelSource, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    interrupted(source, out, "back", signal.SIGKILL)
    stages: list[str] = []
    build_bundle(source, make_plan(source, 2), out, progress=stages.append)
    assert stages == ["tokenizer", "front", "back", "manifest"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_share_rises_to_one(source: ModelSource, tmp_path: Path) -> None:
    shares: list[float] = []
    build_bundle(
        source,
        make_plan(source, 2),
        tmp_path / "bundle",
        progress=lambda stage: None,
        calibration=Calibration(text=TEXT),
        share=shares.append,
    )
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert len(shares) > 10
