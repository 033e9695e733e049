"""A full or read-only disk is one line with the path and the cure, whoever was writing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from optimizer.errors import BuildError, ModelError
from optimizer.export import bundle_builder
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.disk_faults import disk_fault, naming_the_disk
from optimizer.export.sources.model_source import ModelSource, open_source
from tests import warm_python
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
HERE = Path("/somewhere")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model("llama", folder)
    return open_source(folder)


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FULL, "/somewhere: no space left"),
        (OSError(errno.ENOSPC, "x", "/a/b"), "/a/b: no space left"),
        (PermissionError(errno.EACCES, "x", "/a/b"), "/a/b: cannot be written"),
        (OSError(errno.EROFS, "x", "/a/b"), "/a/b: cannot be written"),
        (OSError(errno.EDQUOT, "x"), "/somewhere: the disk quota"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            "/somewhere: no space left",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), "no space"),
        (chained(BuildError("the exporter failed: OSError"), FULL), "/somewhere: no space left"),
        (BuildError("the exporter failed: OSError: [Errno 28] No space left"), "no space left"),
    ],
)
def test_every_writers_words_become_one_line(error: Exception, line: str) -> None:
    with pytest.raises(BuildError, match=line), naming_the_disk(HERE):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no space left"),
        KeyError("x"),
        FileNotFoundError(errno.ENOENT, "x", "y"),
        chained(ModelError("not readable"), PermissionError(errno.EACCES, "x", "model")),
    ],
)
def test_other_errors_pass_unchanged(error: Exception) -> None:
    assert disk_fault(error, HERE) is None
    with pytest.raises(type(error)) as raised, naming_the_disk(HERE):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("stage", ["export_front", "write_back", "write_manifest", "publish"])
def test_a_disk_that_fills_at_any_stage_leaves_nothing(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def full(*arguments: object) -> None:
        raise FULL

    monkeypatch.setattr(bundle_builder, stage, full)
    with pytest.raises(BuildError, match=rf"{tmp_path}: no space left on the disk"):
        build_bundle(source, make_plan(source, 2), tmp_path / "b", progress=lambda stage: None)
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
from optimizer.errors import BuildError
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_plan
source = open_source(Path(sys.argv[1]))
plan = make_plan(source, int(sys.argv[3]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
try:
    build_bundle(source, plan, Path(sys.argv[2]), progress=lambda stage: None)
except BuildError as error:
    print(error)
"""


@pytest.mark.parametrize(("split", "limit"), [(0, 50_000), (2, 50_000), (4, 150_000)])
def test_real_writers_that_cannot_go_on_are_one_line(
    source: ModelSource, tmp_path: Path, split: int, limit: int
) -> None:
    """A limit on the size of files is what a test can set; the writers fail as on a full disk."""
    found = warm_python.run(LIMITED, [source.place, tmp_path / "b", split, limit])
    assert found.returncode == 0, found.stderr
    assert "grew beyond what the file system" in found.stdout, found.stderr
    assert found.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
