"""A GGUF file is compared with the architecture too; what is not read of it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from optimizer.artifacts.bundle import sha256_of
from optimizer.errors import ModelError
from optimizer.export.sources.gguf_positions import llama3_factors
from optimizer.export.sources.model_source import open_source
from tests.local_data import smollm2
from tests.optimizer.export.sources.checkpoints import (
    as_gguf,
    as_split_gguf,
    gemma3_gguf,
    written,
)
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


def odd_positions(writer: gguf.GGUFWriter) -> None:
    writer.add_string("llama.rope.scaling.type", "su")
    writer.add_rope_scaling_factor(4.0)


def scaled(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def unscaled(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (with_parts, "one of 3 parts.*or join them"),
        (as_adapter, "an adapter, not a model; merge"),
        (odd_positions, "positions of kind 'su', which are not read"),
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
        ({"rope_freqs.weight": torch.full((7,), 8.0)}, "must hold 8 factors above 0"),
        ({"rope_freqs.weight": torch.zeros(8)}, "must hold 8 factors above 0"),
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


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(64)


def frequencies(config: Any) -> tuple[torch.Tensor, float]:
    """The rotary frequencies and the factor of cosines and sines that transformers computes."""
    rope = config.rope_parameters["rope_type"]
    if rope == "default":
        base = config.rope_parameters["rope_theta"]
        return base ** (-torch.arange(0, 16, 2) / 16), 1.0
    found: tuple[torch.Tensor, float] = ROPE_INIT_FUNCTIONS[rope](config, torch.device("cpu"))
    return found


PLAIN = 10000.0 ** (-np.arange(0, 16, 2) / 16)


@pytest.mark.parametrize(
    ("facts", "factors", "expected", "attention"),
    [
        (unscaled, None, PLAIN, 1.0),
        (scaled, None, PLAIN / 4, 1.0),
        (None, np.arange(1, 9) / 2, PLAIN / (np.arange(1, 9) / 2), 1.0),
        (None, llama3_factors(8, 10000.0, 32.0), PLAIN / llama3_factors(8, 10000.0, 32.0), 1.0),
    ],
)
def test_position_scaling_reaches_the_config(
    folder: Path, tmp_path: Path, facts: Any, factors: Any, expected: Any, attention: float
) -> None:
    more = {} if factors is None else {"rope_freqs.weight": torch.tensor(factors).float()}
    source = open_source(as_gguf(folder, tmp_path / "m.gguf", more=more, facts=facts))
    found, scale = frequencies(source.config)
    torch.testing.assert_close(found.double(), torch.tensor(expected), rtol=1e-5, atol=0)
    assert scale == attention


def test_yarn_has_its_lengths_and_llama_3_its_own_kind(folder: Path, tmp_path: Path) -> None:
    config = open_source(as_gguf(folder, tmp_path / "y.gguf", facts=yarn)).config
    rope = config.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("yarn", 4.0)
    assert rope["original_max_position_embeddings"] == 64
    _, scale = frequencies(config)
    assert scale == pytest.approx(0.1 * np.log(4.0) + 1)
    factors = {"rope_freqs.weight": torch.tensor(llama3_factors(8, 10000.0, 32.0)).float()}
    config = open_source(as_gguf(folder, tmp_path / "l.gguf", more=factors)).config
    assert config.rope_parameters["rope_type"] == "llama3"
    assert config.rope_parameters["factor"] == 32.0


def test_a_split_model_reads_like_a_whole_one(folder: Path, tmp_path: Path) -> None:
    whole = open_source(as_gguf(folder, tmp_path / "m.gguf"))
    parts = as_split_gguf(folder, tmp_path / "parts", count=3)
    for path in (tmp_path / "parts", parts[0], parts[2]):
        source = open_source(path)
        assert source.tensor_names == whole.tensor_names
        assert source.config.tie_word_embeddings == whole.config.tie_word_embeddings
    for name in whole.tensor_names:
        assert torch.equal(source.read(name), whole.read(name))
    before = source.sha256
    content = bytearray(parts[2].read_bytes())
    content[-1] ^= 1
    parts[2].write_bytes(bytes(content))
    assert open_source(parts[0]).sha256 != before
    parts[1].unlink()
    with pytest.raises(ModelError, match=r"1 of its 3 parts are missing .*00002-of-00003"):
        open_source(parts[0])


def test_a_part_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    parts = as_split_gguf(folder, tmp_path / "parts", count=3)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ModelError, match="not part 2 of a model"):
        open_source(parts[0])


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_1", "Q5_0", "Q5_1", "BF16", "F16"])
def test_types_are_read_as_gguf_dequantizes_them_and_grids_are_theirs(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    source = open_source(as_gguf(folder, tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType[kind]))
    original = open_source(folder)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        stored, meant = source.read(name), original.read(name)
        if "q_proj" in name:  # as llama.cpp's converter permutes it
            meant = meant.view(4, 8, 2, 64).transpose(1, 2).reshape(64, 64)
        assert float((stored - meant).abs().max()) < 0.1 * float(meant.abs().max())
        matrix = source.quantized_matrix(name)
        assert (matrix is not None) == (kind in ("Q4_0", "Q8_0"))
        if matrix is not None:
            steps = matrix.codes.view(-1, 2, 32).double() - matrix.zeros.double()[..., None]
            weight = (steps * matrix.scales.double()[..., None]).view(stored.shape).float()
            assert torch.equal(weight, stored)
    assert source.quantization == (None if kind in ("BF16", "F16") else kind)


def test_gemma_3_norms_are_those_of_the_model(tmp_path: Path) -> None:
    make_tiny_model("gemma3", tmp_path / "m")
    meant = load_file(tmp_path / "m" / "model.safetensors")
    source = open_source(gemma3_gguf(meant, tmp_path / "m.gguf"))
    stored = source.stored_tensors()
    assert stored.keys() == meant.keys()
    for name, tensor in meant.items():
        torch.testing.assert_close(source._read(stored[name]), tensor, rtol=0, atol=3e-7)
    rope = source.config.rope_parameters
    assert rope["full_attention"] == {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    assert rope["sliding_attention"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert source.config.query_pre_attn_scalar == 16
    assert source.config.head_dim == 16
    assert source.config.sliding_window == 12


def test_the_config_is_transformers_own_but_for_what_it_leaves_out(
    folder: Path, tmp_path: Path
) -> None:
    make_tiny_model("gemma3", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    for path in (as_gguf(folder, tmp_path / "l.gguf"), gemma3_gguf(tensors, tmp_path / "g.gguf")):
        check_config(path)


@pytest.mark.real_model
def test_a_real_models_config_is_transformers_own() -> None:
    (path,) = smollm2().glob("*.gguf")
    check_config(path)


def check_config(path: Path) -> None:
    """Every value that transformers reads of a GGUF file is in the source's config."""
    theirs = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    ours = open_source(path).config
    assert type(ours) is type(theirs)
    ignored = {
        *(
            "rope_parameters",
            "architectures",
            "quantization_config",
            "_name_or_path",
            "_model_name_or_path",
        ),
        *("query_pre_attn_scalar", "dtype", "transformers_version"),
    }
    expected = {k: v for k, v in theirs.to_dict().items() if k not in ignored}
    found = ours.to_dict()
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.real_model
def test_a_real_models_tokenizer_is_transformers_own_and_its_reader_is_put_back() -> None:
    path = next(smollm2().glob("*.gguf"))
    before = gguf.GGUFReader
    tokenizer = open_source(path).load_tokenizer()
    assert gguf.GGUFReader is before
    own = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert tokenizer.backend_tokenizer.to_str() == own.backend_tokenizer.to_str()
    assert tokenizer.special_tokens_map == own.special_tokens_map
    assert tokenizer.chat_template == own.chat_template


def test_an_architecture_that_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_block_count(2)
    written(writer, tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="architecture 'mamba' is not read from GGUF"):
        open_source(tmp_path / "m.gguf")
