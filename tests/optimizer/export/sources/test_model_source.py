"""Sources: the same config, tensors, tokenizer and hash, whatever the model is stored in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

from optimizer.artifacts.bundle import sha256_of
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.errors import ModelError
from optimizer.export.sources.folder_source import FolderSource
from optimizer.export.sources.gguf_source import GgufSource
from optimizer.export.sources.model_source import open_source
from tests.local_data import smollm2
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "qwen2"
    make_tiny_model("qwen2", path)
    return path


@pytest.fixture(scope="module")
def gguf() -> GgufSource:
    source = open_source(smollm2())
    assert isinstance(source, GgufSource)
    return source


def test_every_tensor_of_a_folder_is_read_as_stored(folder: Path) -> None:
    source = open_source(folder)
    stored = load_file(folder / "model.safetensors")
    assert source.tensor_names == stored.keys()
    assert all(torch.equal(source.read(name), tensor) for name, tensor in stored.items())


def test_a_sharded_folder_reads_like_a_whole_one(folder: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole, sharded = open_source(folder), open_source(tmp_path)
    assert sharded.tensor_names == whole.tensor_names
    for name in whole.tensor_names:
        assert torch.equal(sharded.read(name), whole.read(name))


def test_the_hash_follows_the_content_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "another-name"
    shutil.copytree(folder, copy)
    (copy / "notes.txt").write_text("no part of the model")
    assert open_source(copy).sha256 == open_source(folder).sha256
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert open_source(copy).sha256 != open_source(folder).sha256


def test_the_geometry_is_the_configs(folder: Path) -> None:
    assert open_source(folder).geometry == ModelGeometry(
        architecture="Qwen2ForCausalLM",
        num_layers=4,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        vocab_size=320,
        context_length=256,
        tied_embeddings=True,
        attention_bias=True,
    )


def test_windows_are_the_configs(tmp_path: Path) -> None:
    windows = {}
    for family in ("mistral", "gemma2", "llama"):
        make_tiny_model(family, tmp_path / family)
        geometry = open_source(tmp_path / family).geometry
        windows[family] = [geometry.window_of_layer(layer) for layer in range(4)]
    assert windows == {
        "mistral": [12, 12, 12, 12],
        "gemma2": [12, None, 12, None],
        "llama": [None] * 4,
    }


def test_the_tokenizer_works_without_transformers(folder: Path) -> None:
    files = open_source(folder).tokenizer_files()
    tokenizer = Tokenizer.from_str(files.tokenizer_json)
    text = "Splits: 0, 1 \u2026 L"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert files.chat_template is not None
    assert "assistant" in files.chat_template
    assert files.settings.stop_token_ids == (2,)
    assert files.settings.bos_token == "<s>"


def test_stop_tokens_of_the_generation_config_count(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text('{"eos_token_id": [2, 77]}')
    assert open_source(copy).tokenizer_files().settings.stop_token_ids == (2, 77)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "no such model folder"),
        (lambda path: path.mkdir(), "0 GGUF models and no config.json"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{}")), "safetensors"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, make: object, expected: str):
    path = tmp_path / "model"
    make(path)  # type: ignore[operator]
    with pytest.raises(ModelError, match=expected):
        open_source(path)


def test_a_config_that_is_no_config_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text("{ broken")
    with pytest.raises(ModelError, match=r"config\.json: not valid JSON"):
        FolderSource(copy)


def test_a_broken_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelError, match="not a readable GGUF"):
        open_source(path)


@pytest.mark.real_model
def test_a_gguf_reads_tensor_by_tensor_like_transformers_reads_it_whole(gguf: GgufSource) -> None:
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.path.parent, gguf_file=gguf.path.name, dtype=torch.float32
    ).state_dict()
    assert set(whole) - gguf.tensor_names == {"lm_head.weight"}  # tied: stored once
    assert gguf.tensor_names <= set(whole)
    assert all(torch.equal(gguf.read(name), whole[name]) for name in gguf.tensor_names)


@pytest.mark.real_model
def test_a_gguf_has_its_files_hash_its_tokenizer_and_its_template(gguf: GgufSource) -> None:
    assert gguf.sha256 == sha256_of(gguf.path)
    files = gguf.tokenizer_files()
    reference = transformers.AutoTokenizer.from_pretrained(
        gguf.path.parent, gguf_file=gguf.path.name
    )
    text = "The river had risen; 1,204 units (3.7 %).\n\tdef f(x): return x"
    assert Tokenizer.from_str(files.tokenizer_json).encode(text).ids == reference(text).input_ids
    assert files.chat_template == reference.chat_template
    assert reference.convert_tokens_to_ids("<|im_end|>") in files.settings.stop_token_ids
