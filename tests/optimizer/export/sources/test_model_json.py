"""A broken small file of a checkpoint is one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimizer.errors import ModelError
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.sources.checkpoints import copy_of
from tests.tiny_models import make_tiny_model

BROKEN = [b"", b"{", b"[1]", b"\xff\xfe", b"version https://git-lfs.github.com/spec/v1\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path)
    return path


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_broken_file_is_named(folder: Path, tmp_path: Path, name: str, content: bytes) -> None:
    path = copy_of(folder, tmp_path / "m")
    (path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}: ") as refused:
        open_source(path).tokenizer_files()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [{}, {"model": {"type": "BPE"}}, {"version": "1.0"}])
def test_a_tokenizer_that_is_json_and_no_tokenizer_is_one_line(
    folder: Path, tmp_path: Path, content: object
) -> None:
    path = copy_of(folder, tmp_path / "m")
    (path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"m: its tokenizer is not readable") as refused:
        open_source(path).tokenizer_files()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", ["2", 2.5, True, -1, ["2"], [2, None], {"2": 3}, [[2]]])
def test_stop_ids_that_are_no_ids_are_refused(folder: Path, tmp_path: Path, value: object) -> None:
    path = copy_of(folder, tmp_path / "m")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id must be"):
        open_source(path).tokenizer_files()


@pytest.mark.parametrize(("value", "stops"), [(None, (2,)), (7, (2, 7)), ([7, 9], (2, 7, 9))])
def test_one_stop_id_or_several_count(
    folder: Path, tmp_path: Path, value: object, stops: tuple[int, ...]
) -> None:
    path = copy_of(folder, tmp_path / "m")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert open_source(path).tokenizer_files().settings.stop_token_ids == stops
