"""A back that does not compute what transformers' layers compute stops the build, and is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cloud.engine import back_engine
from cloud.engine.served_back import ServedBack
from optimizer.artifacts.plan import Plan
from optimizer.errors import BuildError
from optimizer.export.back import write_back
from optimizer.export.back_check import BACK_CHECK_NAME, check_back
from optimizer.export.back_reference import write_reference
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.model_source import ModelSource, open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import BACK_FAMILIES, make_tiny_model

Make = Callable[[str], ModelSource]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Make:
    @cache
    def make(family: str) -> ModelSource:
        folder = tmp_path_factory.mktemp(family)
        make_tiny_model(family, folder)
        return open_source(folder)

    return make


def written(source: ModelSource, plan: Plan, folder: Path) -> Path:
    folder.mkdir()
    write_back(source, plan, folder)
    return folder


@pytest.mark.parametrize("back_bits", [32, 16, 8])
@pytest.mark.parametrize("family", BACK_FAMILIES)
def test_what_was_written_computes_what_transformers_computes(
    tiny: Make, family: str, back_bits: int, tmp_path: Path
) -> None:
    source = tiny(family)
    plan = make_plan(source, 1, back_bits=back_bits)
    folder = written(source, plan, tmp_path / "cloud")
    check_back(source, plan, folder, ServedBack)
    record = json.loads((folder / BACK_CHECK_NAME).read_text(encoding="utf-8"))
    layers = [f"layer {index}" for index in range(1, source.geometry.num_layers)]
    assert list(record["parts"]) == [*layers, "head"]
    assert record["worst"] == max(record["parts"].values())
    assert record["worst"] < (1e-2 if back_bits == 8 else 1e-4)


@pytest.mark.parametrize("back_bits", [32, 8])
def test_a_back_of_all_layers_is_tried_from_the_tokens_on(
    tiny: Make, back_bits: int, tmp_path: Path
) -> None:
    source = tiny("llama")
    plan = make_plan(source, 2, back_bits=back_bits, back_start=0)
    folder = tmp_path / "cloud"
    folder.mkdir()
    write_reference(source, plan, folder)
    check_back(source, plan, folder, ServedBack)
    record = json.loads((folder / BACK_CHECK_NAME).read_text(encoding="utf-8"))
    assert list(record["parts"])[:2] == ["embedding", "layer 0"]


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("model.layers.2.mlp.down_proj.weight", "layer 2"),
        ("model.layers.3.self_attn.k_proj.weight", "layer 3"),
        ("model.norm.weight", "head"),
        ("lm_head.weight", "head"),
    ],
)
def test_a_tensor_that_was_written_wrong_is_found_and_its_part_named(
    tiny: Make, tensor: str, part: str, tmp_path: Path
) -> None:
    source = tiny("llama")
    plan = make_plan(source, 1)
    folder = written(source, plan, tmp_path / "cloud")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors[tensor][3] *= 1.05
    save_file(tensors, file)
    with pytest.raises(BuildError, match=f"{part} of the server's back departs"):
        check_back(source, plan, folder, ServedBack)


def test_a_server_that_computes_something_else_stops_the_build(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions off by one in the server's code: no bundle, and nothing half-made."""
    own = back_engine.BackEngine._rotary_of

    def late(self: back_engine.BackEngine, positions: list[int]) -> object:
        return own(self, [position + 1 if position > 2 else position for position in positions])

    monkeypatch.setattr(back_engine.BackEngine, "_rotary_of", late)
    source = tiny("llama")
    out = tmp_path / "bundle"
    with pytest.raises(BuildError, match="layer 1 of the server's back departs"):
        build_bundle(
            source, make_plan(source, 1), out, progress=lambda _: None, open_back=ServedBack
        )
    assert not list(tmp_path.iterdir())


def test_a_build_that_tries_the_back_says_so_and_keeps_the_result(
    tiny: Make, tmp_path: Path
) -> None:
    stages: list[str] = []
    source = tiny("llama")
    out = tmp_path / "bundle"
    build_bundle(source, make_plan(source, 1), out, progress=stages.append, open_back=ServedBack)
    assert stages == ["tokenizer", "front", "back", "trying the back", "manifest"]
    assert (out / "cloud" / BACK_CHECK_NAME).is_file()
