"""A build reads the files that the index names, and no other; what is unclear is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimizer.artifacts.bundle import sha256_of
from optimizer.errors import ModelError
from optimizer.export.sources.checkpoint_files import INDEX_NAME, WHOLE_NAME, checkpoint_files
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.sources.checkpoints import copy_of, sharded
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path)
    return path


def last_versions_hash(folder: Path) -> str:
    """What the last version made of a folder: all safetensors files, sorted by name."""
    digest = hashlib.sha256(sha256_of(folder / "config.json").encode())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()


def drop_index(folder: Path) -> None:
    (folder / INDEX_NAME).unlink()


def test_the_hash_of_usual_folders_is_the_last_versions(folder: Path, tmp_path: Path) -> None:
    shards = sharded(folder, tmp_path / "shards")
    unnamed = sharded(folder, tmp_path / "unnamed")
    drop_index(unnamed)
    odd = copy_of(folder, tmp_path / "odd")
    (odd / WHOLE_NAME).rename(odd / "weights.safetensors")
    for path in (folder, shards, unnamed, odd):
        assert open_source(path).sha256 == last_versions_hash(path)


@pytest.mark.parametrize(
    "name",
    ["model_orig.safetensors", "consolidated.safetensors", "model-00001-of-00002.safetensors"],
)
@pytest.mark.parametrize("layout", ["whole", "shards"])
def test_files_beside_the_checkpoint_change_nothing_and_are_named(
    folder: Path, tmp_path: Path, layout: str, name: str
) -> None:
    path = tmp_path / "model"
    (copy_of if layout == "whole" else sharded)(folder, path)
    clean = open_source(path)
    wrong = {key: torch.zeros_like(value) for key, value in load_file(folder / WHOLE_NAME).items()}
    save_file(wrong, path / name)
    source = open_source(path)
    assert source.sha256 == clean.sha256
    assert source.notes == (f"not part of the checkpoint, ignored: {name}",)
    assert source.tensor_names == clean.tensor_names
    for key in clean.tensor_names:
        assert torch.equal(source.read(key), clean.read(key))


def test_the_whole_model_is_loaded_from_the_same_files(folder: Path, tmp_path: Path) -> None:
    odd = copy_of(folder, tmp_path / "odd")
    (odd / WHOLE_NAME).rename(odd / "weights.safetensors")
    unnamed = sharded(folder, tmp_path / "unnamed")
    drop_index(unnamed)
    expected = open_source(folder).load_model().state_dict()
    for path in (odd, unnamed):
        found = open_source(path).load_model().state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def rewrite_index(folder: Path, **changes: Any) -> None:
    path = folder / INDEX_NAME
    values = json.loads(path.read_text())
    values["weight_map"] |= changes
    path.write_text(json.dumps(values))


def test_an_absent_shard_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    path = sharded(folder, tmp_path / "model")
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors: named by .*fetch"):
        open_source(path)
    drop_index(path)
    with pytest.raises(ModelError, match="2 of 3 shards are there"):
        open_source(path)


def test_an_index_of_another_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    path = sharded(folder, tmp_path / "model")
    rewrite_index(path, **{"model.norm.weight": "model-00001-of-00003.safetensors"})
    with pytest.raises(ModelError, match="different checkpoints"):
        open_source(path)
    extra = sharded(folder, tmp_path / "extra")
    shard = extra / "model-00001-of-00003.safetensors"
    save_file(load_file(shard) | {"model.norm.weight": torch.zeros(64)}, shard)
    with pytest.raises(ModelError, match=r"00001-of-00003.*model\.norm\.weight.*does not name"):
        open_source(extra)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "", 7])
def test_an_index_names_files_of_its_own_folder_only(
    folder: Path, tmp_path: Path, name: object
) -> None:
    path = sharded(folder, tmp_path / "model")
    rewrite_index(path, **{"model.norm.weight": name})
    with pytest.raises(ModelError, match=r"index\.json: .*model\.norm\.weight.*plain name"):
        checkpoint_files(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000]
)
def test_a_broken_index_is_refused_by_name(folder: Path, tmp_path: Path, text: str) -> None:
    path = sharded(folder, tmp_path / "model")
    (path / INDEX_NAME).write_text(text)
    with pytest.raises(ModelError, match=r"index\.json: ") as refused:
        open_source(path)
    assert "\n" not in str(refused.value)


def test_two_checkpoints_of_which_either_could_be_meant_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    both = sharded(folder, tmp_path / "both")
    shutil.copy(folder / WHOLE_NAME, both)
    with pytest.raises(ModelError, match="remove the one that you do not mean"):
        open_source(both)
    several = copy_of(folder, tmp_path / "several")
    shutil.copy(several / WHOLE_NAME, several / "a.safetensors")
    (several / WHOLE_NAME).rename(several / "b.safetensors")
    with pytest.raises(ModelError, match=r"a\.safetensors, b\.safetensors.*keep one"):
        open_source(several)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_is_never_left_out_silently(folder: Path, tmp_path: Path, name: str) -> None:
    beside = copy_of(folder, tmp_path / "beside")
    (beside / name).write_text("{}")
    with pytest.raises(ModelError, match=f"{name}: an adapter lies beside.*merge it"):
        open_source(beside)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / name).write_text("{}")
    with pytest.raises(ModelError, match=f"{name}: holds an adapter and no model; merge it"):
        open_source(tmp_path / "alone")


def test_pickled_weights_are_named(folder: Path, tmp_path: Path) -> None:
    path = copy_of(folder, tmp_path / "model")
    (path / WHOLE_NAME).rename(path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled .*pytorch_model\.bin; fetch .* safetensors"):
        open_source(path)
