"""What a build takes is what the architecture needs, at every split and precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from optimizer.errors import ModelError
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_plan
from tests.optimizer.export.sources.checkpoints import Tensors, copy_of
from tests.tiny_models import make_tiny_model

MATRIX = "model.layers.1.mlp.up_proj.weight"
PREFIX = MATRIX.removesuffix(".weight")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path)
    return path


def fp8(tensors: Tensors) -> None:
    tensors[MATRIX] = tensors[MATRIX].to(torch.float8_e4m3fn)
    tensors[f"{MATRIX}_scale_inv"] = torch.ones(1, 1)


def fp8_without_scales(tensors: Tensors) -> None:
    tensors[MATRIX] = tensors[MATRIX].to(torch.float8_e5m2)


def gptq(tensors: Tensors) -> None:
    del tensors[MATRIX]
    for part in ("qweight", "qzeros", "g_idx"):
        tensors[f"{PREFIX}.{part}"] = torch.zeros(8, 8, dtype=torch.int32)
    tensors[f"{PREFIX}.scales"] = torch.ones(8, 8)


def bitsandbytes_4bit(tensors: Tensors) -> None:
    tensors[MATRIX] = torch.zeros(3072, 1, dtype=torch.uint8)
    tensors[f"{MATRIX}.absmax"] = torch.zeros(8, dtype=torch.uint8)
    tensors[f"{MATRIX}.quant_state.bitsandbytes__nf4"] = torch.zeros(8, dtype=torch.uint8)


def bitsandbytes_8bit(tensors: Tensors) -> None:
    tensors[MATRIX] = tensors[MATRIX].to(torch.int8)
    tensors[f"{PREFIX}.SCB"] = torch.ones(96)


def packed(tensors: Tensors) -> None:
    del tensors[MATRIX]
    tensors[f"{PREFIX}.weight_packed"] = torch.zeros(8, dtype=torch.int32)


def mxfp4(tensors: Tensors) -> None:
    tensors[f"{PREFIX}_blocks"] = torch.zeros(8, dtype=torch.uint8)


def integers(tensors: Tensors) -> None:
    tensors[MATRIX] = tensors[MATRIX].to(torch.int8)


@pytest.mark.parametrize(
    ("change", "method"),
    [
        (fp8, "fp8"),
        (fp8_without_scales, "F8_E5M2"),
        (gptq, "gptq"),
        (bitsandbytes_4bit, "bitsandbytes"),
        (bitsandbytes_8bit, "bitsandbytes"),
        (packed, "compressed-tensors"),
        (mxfp4, "mxfp4"),
        (integers, "I8"),
    ],
)
@pytest.mark.parametrize("split", [0, 2, 4])
def test_quantized_tensors_are_refused_at_every_split(
    folder: Path, tmp_path: Path, change: Callable[[Tensors], object], method: str, split: int
) -> None:
    source = open_source(copy_of(folder, tmp_path / "model", change))
    plan = make_plan(open_source(folder), split)
    plan = replace(plan, model=replace(plan.model, sha256=source.sha256))
    with pytest.raises(ModelError, match=rf"model\.safetensors: .*up_proj.*{method}.*dequantized"):
        build_bundle(source, plan, tmp_path / "out", progress=lambda stage: None)
    with pytest.raises(ModelError, match="dequantized"):
        _ = source.geometry
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("section", "method"),
    [
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_algo": "FP8"}, "FP8"),
        ("odd", "unknown"),
    ],
)
def test_a_config_that_tells_of_a_method_that_is_not_read_is_refused_with_its_name(
    folder: Path, tmp_path: Path, section: object, method: str
) -> None:
    path = copy_of(folder, tmp_path / "model") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": section}))
    with pytest.raises(ModelError, match=rf"config\.json: .*\({method}.*dequantized"):
        open_source(path.parent)


@pytest.mark.parametrize(
    ("section", "method"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ, 4 bits"),
        ({"quant_method": "awq", "bits": 4}, "AWQ, 4 bits"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
)
def test_a_config_that_tells_of_packed_weights_where_none_are_is_refused(
    folder: Path, tmp_path: Path, section: object, method: str
) -> None:
    path = copy_of(folder, tmp_path / "model") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": section}))
    with pytest.raises(ModelError, match=rf"config\.json says {method}.*no weight is packed so"):
        open_source(path.parent)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(MATRIX), f"{MATRIX} is missing"),
        (lambda t: t.pop("model.embed_tokens.weight"), "embed_tokens.weight is missing"),
        (lambda t: t.update({MATRIX: t[MATRIX].T.contiguous()}), r"\[64, 96\].*says \[96, 64\]"),
        (lambda t: t.update({MATRIX: t[MATRIX][:-1].clone()}), r"\[95, 64\].*says \[96, 64\]"),
        (lambda t: t.update({MATRIX: torch.zeros(0)}), r"\[0\]"),
        (
            lambda t: t.update({f"{PREFIX}.bias": torch.zeros(96)}),
            r"up_proj\.bias: not a tensor of the architecture",
        ),
        (
            lambda t: t.update({MATRIX.replace(".1.", ".4."): torch.zeros(96, 64)}),
            r"layers\.4.*not a tensor of the architecture",
        ),
        (
            lambda t: t.update({f"base_model.model.{PREFIX}.lora_A.weight": torch.zeros(4, 64)}),
            "part of an adapter; merge",
        ),
    ],
)
def test_other_tensors_than_the_architectures_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[Tensors], object], reason: str
) -> None:
    source = open_source(copy_of(folder, tmp_path / "model", change))
    for use in (source.check, lambda: source.geometry, source.load_model):
        with pytest.raises(ModelError, match=reason) as refused:
            use()
        assert "\n" not in str(refused.value)


def test_a_build_with_a_plan_of_the_same_hash_is_checked_too(folder: Path, tmp_path: Path) -> None:
    """Such a plan came from a version that took anything."""
    good = open_source(folder)
    source = open_source(copy_of(folder, tmp_path / "model", lambda t: t.pop(MATRIX)))
    for split in (0, 2, 4):
        plan = make_plan(good, split)
        plan = replace(plan, model=replace(plan.model, sha256=source.sha256))
        with pytest.raises(ModelError, match=f"{MATRIX} is missing"):
            build_bundle(source, plan, tmp_path / "out", progress=lambda stage: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_derived_values_and_a_head_equal_to_the_embedding_are_no_fault(
    folder: Path, tmp_path: Path
) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    source = open_source(copy_of(folder, tmp_path / "model", change))
    assert source.tensor_names == open_source(folder).tensor_names | {"lm_head.weight"}
    assert torch.equal(source.read("lm_head.weight"), source.read("model.embed_tokens.weight"))


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    def change(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    source = open_source(copy_of(folder, tmp_path / "model", change))
    for use in (lambda: source.read("lm_head.weight"), source.load_model):
        with pytest.raises(ModelError, match=r"lm_head\.weight differs from .*tie_word_embeddings"):
            use()


def test_a_head_that_is_not_tied_must_be_there(tmp_path: Path) -> None:
    make_tiny_model("phi3", tmp_path / "phi3")
    path = copy_of(tmp_path / "phi3", tmp_path / "model", lambda t: t.pop("lm_head.weight"))
    with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
        open_source(path).check()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": -64}, "config"),
        ({"num_attention_heads": 0}, "config"),
        ({"num_hidden_layers": "four"}, "config"),
        ({"rope_theta": None, "rope_parameters": 7}, "config"),
        ({"eos_token_id": "2"}, "config"),
        ({"architectures": []}, "architecture unknown"),
        ({"architectures": None}, "architecture unknown"),
    ],
)
def test_a_config_of_impossible_values_is_one_clear_line(
    folder: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = copy_of(folder, tmp_path / "model") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=reason) as refused:
        open_source(path.parent).geometry  # noqa: B018
    assert "\n" not in str(refused.value)
