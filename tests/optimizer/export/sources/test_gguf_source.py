"""A GGUF file is compared with the architecture too; what is not read of it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch

from optimizer.artifacts.bundle import sha256_of
from optimizer.errors import ModelError
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.sources.checkpoints import as_gguf
from tests.tiny_models import make_tiny_model

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
NORM = "model.layers.3.input_layernorm.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path)
    return path


def test_a_whole_file_has_the_folders_tensors_and_its_own_hash(
    folder: Path, tmp_path: Path
) -> None:
    path = as_gguf(folder, tmp_path / "m.gguf")
    source, original = open_source(path), open_source(folder)
    assert source.sha256 == sha256_of(path)
    assert source.tensor_names == original.tensor_names
    assert torch.equal(source.read(NORM), original.read(NORM))
    assert source.geometry.num_layers == 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (LFS, "Git-LFS pointer.*git lfs pull"),
        (b"GGUF", "not a readable GGUF"),
        (b"GGUF" + bytes(64), "not a readable GGUF"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16, "not a readable GGUF"),
        (b"safe" * 100, "not a readable GGUF"),
    ],
)
def test_what_is_no_gguf_file_is_refused_in_one_line(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"model\.gguf: .*{reason}") as refused:
        open_source(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_file_cut_anywhere_is_refused(folder: Path, tmp_path: Path, share: float) -> None:
    path = as_gguf(folder, tmp_path / "m.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=r"m\.gguf: .*cut off") as refused:
        open_source(path)
    assert "\n" not in str(refused.value)


def test_a_missing_tensor_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    path = as_gguf(folder, tmp_path / "m.gguf", without="blk.2.ffn_up.weight")
    with pytest.raises(ModelError, match=r"m\.gguf: .*layers\.2\.mlp\.up_proj\.weight is missing"):
        open_source(path).check()


def with_parts(writer: gguf.GGUFWriter) -> None:
    writer.add_uint16("split.count", 3)


def as_adapter(writer: gguf.GGUFWriter) -> None:
    writer.add_type("adapter")


def scaled(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def unscaled(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (with_parts, "one of 3 parts; join them"),
        (as_adapter, "an adapter, not a model; merge"),
        (scaled, "scaled positions .linear.*safetensors folder"),
    ],
)
def test_what_the_reader_would_leave_out_is_refused(
    folder: Path, tmp_path: Path, facts: Callable[[gguf.GGUFWriter], object], reason: str
) -> None:
    path = as_gguf(folder, tmp_path / "m.gguf", facts=facts)
    with pytest.raises(ModelError, match=rf"m\.gguf: .*{reason}"):
        open_source(path).check()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"rope_freqs.weight": torch.full((8,), 8.0)}, "scaled positions"),
        ({"blk.0.attn_q.bias": torch.ones(64)}, "attn_q.bias: not a tensor of the architecture"),
        ({"blk.9.attn_norm.weight": torch.ones(64)}, "not a tensor of the architecture"),
        ({"model.norm.weight": torch.ones(65)}, r"output_norm\.weight has shape \[65\]"),
        ({"model.norm.weight": torch.ones(64, dtype=torch.int32)}, "output_norm.*type I32"),
        ({"model.norm.weight": torch.ones(64, dtype=torch.float64)}, "output_norm.*type F64"),
    ],
)
def test_tensors_of_another_model_are_refused(
    folder: Path, tmp_path: Path, more: dict[str, torch.Tensor], reason: str
) -> None:
    path = as_gguf(folder, tmp_path / "m.gguf", more=more)
    with pytest.raises(ModelError, match=rf"m\.gguf: .*{reason}"):
        open_source(path).check()


def test_frequencies_that_change_nothing_are_no_fault(folder: Path, tmp_path: Path) -> None:
    ones = {"rope_freqs.weight": torch.ones(8)}
    open_source(as_gguf(folder, tmp_path / "m.gguf", more=ones, facts=unscaled)).check()


def test_a_value_that_is_not_finite_is_refused(folder: Path, tmp_path: Path) -> None:
    spoiled = {"model.norm.weight": torch.full((64,), float("inf"))}
    source = open_source(as_gguf(folder, tmp_path / "m.gguf", more=spoiled))
    with pytest.raises(ModelError, match=r"m\.gguf: output_norm\.weight holds an infinite value"):
        source.read("model.norm.weight")
