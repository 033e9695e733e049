"""A safetensors file that is none, or half of one, is refused by name before any value is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from optimizer.errors import ModelError
from optimizer.export.sources.safetensors_header import merged, read_header

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def file_with(path: Path, header: bytes, values: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + values)
    return path


def test_names_types_and_shapes_are_those_saved(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert {name: (entry.dtype, entry.shape) for name, entry in found.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (4,)),
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (LFS, "Git-LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"abc", "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        ((1000).to_bytes(8, "little") + b"{}", "cut off, 10 bytes of at least 1008"),
        ((4).to_bytes(8, "little") + b"{{{{", "not valid JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not a safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_refused_in_one_line(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"model\.safetensors: .*{reason}") as refused:
        read_header(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("lost", [1, 100, 2400])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(20, 30)}, path)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(ModelError, match="cut off"):
        read_header(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]},
        {"dtype": "F32", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 62]},
        7,
    ],
)
def test_an_impossible_entry_is_refused(tmp_path: Path, entry: object) -> None:
    path = file_with(tmp_path / "x", json.dumps({"a": entry}).encode(), bytes(4))
    with pytest.raises(ModelError, match="fetch it again"):
        read_header(path)


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ModelError, match=r"y: a is in x too"):
        merged({tmp_path / name: read_header(tmp_path / name) for name in ("x", "y")})
