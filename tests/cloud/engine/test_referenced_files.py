"""A back that is read in the model's folder is bit for bit the back that a bundle holds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud.engine.back_weights import load_back
from cloud.errors import WeightsError
from optimizer.artifacts.bundle import Role, open_bundle
from optimizer.artifacts.weight_reference import REFERENCE_NAME, WeightReference, WeightsPlace
from optimizer.errors import BuildError, BundleError
from optimizer.export.back_reference import write_reference
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.model_source import ModelSource, open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import FRONT_FAMILIES, make_tiny_model

SPLIT = 2
# Its experts are stored one by one: there is nothing that could be referred to.
REFERABLE = [family for family in FRONT_FAMILIES if family != "qwen3_moe"]


def source_of(family: str, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> ModelSource:
    """A tiny model in a folder, in several shards of the type in which most models come."""
    model: Any = make_tiny_model(family, folder)
    (folder / "model.safetensors").unlink()
    model.to(dtype).save_pretrained(folder, max_shard_size="60KB")
    return open_source(folder)


def built(source: ModelSource, out: Path, *, bits: int, weights: Any) -> Path:
    plan = make_plan(source, SPLIT, back_bits=bits)
    cloud: tuple[Role, ...] = ("cloud",)
    build_bundle(source, plan, out, progress=lambda stage: None, sides=cloud, weights=weights)
    return out


def values(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    model = load_back(folder, first_layer=SPLIT, **options)
    parts = {f"layer{i}": layer for i, layer in enumerate(model.layers)}
    parts |= {"norm": model.norm, "head": model.head}
    return {
        f"{part}.{name}": tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("family", REFERABLE)
def test_a_referenced_back_has_the_copys_bits(family: str, bits: int, tmp_path: Path) -> None:
    source = source_of(family, tmp_path / "model")
    copy = values(built(source, tmp_path / "copy", bits=bits, weights="copy") / "cloud")
    bundle = built(source, tmp_path / "reference", bits=bits, weights="auto")
    assert {path.name for path in (bundle / "cloud").iterdir()} == {
        "config.json",
        "tokenizer.json",
        REFERENCE_NAME,
    }
    assert open_bundle(bundle, role="cloud").has(f"cloud/{REFERENCE_NAME}")
    found = values(bundle / "cloud")
    assert found.keys() == copy.keys()
    for name, tensor in copy.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("family", ["llama", "mistral"])  # tied, and not
def test_a_referenced_embedding_has_the_copys_rows(family: str, bits: int, tmp_path: Path) -> None:
    source = source_of(family, tmp_path / "model")
    plan = make_plan(source, SPLIT, back_bits=bits, back_start=0)
    sides: tuple[Role, ...] = ("cloud",)
    places: tuple[WeightsPlace, ...] = ("copy", "reference")
    rows = []
    for place in places:
        out = tmp_path / place
        build_bundle(source, plan, out, progress=lambda _: None, sides=sides, weights=place)
        embedding = load_back(out / "cloud", first_layer=0).embedding
        assert embedding is not None
        rows.append(embedding.rows([7, 0, 255, 7]))
    copied, referenced = rows
    assert copied.shape == (4, source.geometry.hidden_size)
    assert np.array_equal(copied, referenced)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    source = source_of("llama", tmp_path / "model")
    return built(source, tmp_path / "bundle", bits=8, weights="reference") / "cloud"


def a_shard(bundle: Path) -> Path:
    reference = WeightReference.load(bundle / REFERENCE_NAME)
    return reference.folder / sorted(reference.files)[0]


def test_only_the_files_that_the_back_needs_are_named(bundle: Path) -> None:
    named = set(WeightReference.load(bundle / REFERENCE_NAME).files)
    there = {path.name for path in a_shard(bundle).parent.glob("*.safetensors")}
    assert named < there


def test_a_model_that_is_gone_is_refused_with_the_cure(bundle: Path) -> None:
    shard = a_shard(bundle)
    kept = shard.rename(shard.with_suffix(".away"))
    with pytest.raises(WeightsError, match=r"it is gone; put the model back.*--weights copy"):
        load_back(bundle, first_layer=SPLIT)
    kept.rename(shard)
    shard.parent.rename(shard.parent.with_name("moved"))
    with pytest.raises(WeightsError, match=r"are not there; put the model back.*--weights copy"):
        load_back(bundle, first_layer=SPLIT)


def test_other_weights_are_refused(bundle: Path) -> None:
    shard = a_shard(bundle)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(WeightsError, match="has changed since the bundle was built"):
        load_back(bundle, first_layer=SPLIT)
    shard.write_bytes(data + b"\0")
    with pytest.raises(WeightsError, match="has changed since the bundle was built"):
        load_back(bundle, first_layer=SPLIT)


def test_a_change_that_keeps_the_time_is_found_by_the_full_hash(bundle: Path) -> None:
    shard = a_shard(bundle)
    facts = shard.stat()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    load_back(bundle, first_layer=SPLIT)  # size, time and header are the same
    with pytest.raises(WeightsError, match="has changed"):
        load_back(bundle, first_layer=SPLIT, verify=True)


def test_the_same_bytes_with_another_time_are_the_same_weights(bundle: Path) -> None:
    os.utime(a_shard(bundle), ns=(1, 1))
    load_back(bundle, first_layer=SPLIT)


def test_what_is_not_used_as_stored_is_copied_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of("llama", tmp_path / "model")
    whole = source._read
    monkeypatch.setattr(source, "_read", lambda stored: whole(stored) + 1)  # a merged adapter
    with pytest.raises(BuildError, match=r"not used as it is stored; use --weights copy"):
        built(source, tmp_path / "a", bits=8, weights="reference")
    assert list((built(source, tmp_path / "b", bits=8, weights="auto") / "cloud").glob("back-*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"folder": "/', '"folder": "'),
        lambda text: text.replace("model-", "../model-"),
        lambda text: text.replace('"back_bits": 8', '"back_bits": 4'),
        lambda text: text[:-40],
    ],
)
def test_a_damaged_reference_is_one_clear_error(bundle: Path, change: Any) -> None:
    path = bundle / REFERENCE_NAME
    path.write_text(change(path.read_text()))
    with pytest.raises(BundleError, match="not a readable reference to weights"):
        WeightReference.load(path)


def test_a_reference_is_half_made_never(tmp_path: Path) -> None:
    source = source_of("llama", tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "cloud").mkdir()
    with pytest.raises(Exception, match=r"model"):
        write_reference(source, make_plan(source, SPLIT), tmp_path / "cloud")
    assert not (tmp_path / "cloud" / REFERENCE_NAME).exists()
