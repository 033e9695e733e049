"""Quantized checkpoints give exactly the weights that their formats mean, or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from optimizer.errors import ModelError
from optimizer.export.sources.checkpoint_files import WHOLE_NAME
from optimizer.export.sources.model_source import ModelSource, open_source
from optimizer.export.sources.packed.matrix_grid import QuantizedMatrix
from splitpoint.cli import main
from tests.optimizer.export.sources import packing
from tests.tiny_models import make_tiny_model

GATE = "model.layers.1.mlp.gate_proj.weight"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 16]}


def compressed(kind: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {**WEIGHTS, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path)
    return path


def opened(
    folder: Path, out: Path, settings: dict[str, Any], pack: Any, **grid: Any
) -> tuple[ModelSource, dict[str, torch.Tensor]]:
    """The source of a packed copy, and the weights that the test means by it."""

    def packed(name: str, shape: tuple[int, int]) -> tuple[packing.Tensors, torch.Tensor]:
        matrix = packing.random_grid(shape, seed=len(name), **grid)
        return pack(matrix), matrix.weight()

    meant = packing.packed_copy(folder, out, settings, packed)
    return open_source(out), meant


def unrounded(matrix: QuantizedMatrix) -> torch.Tensor:
    """What MatMulNBits computes with, by its definition."""
    outputs, inputs = matrix.codes.shape
    codes = matrix.codes.view(outputs, inputs // 32, 32).double()
    steps = codes - matrix.zeros.double()[..., None]
    return (steps * matrix.scales.double()[..., None]).view(outputs, inputs).float()


@pytest.mark.parametrize(
    ("settings", "pack", "grid", "on_front"),
    [
        (GPTQ, packing.gptq, {}, True),
        (GPTQ, lambda m: packing.gptq(m, with_groups=False), {"group": 96}, True),
        ({**GPTQ, "desc_act": True}, packing.gptq, {"act_order": True}, False),
        ({**GPTQ, "bits": 8}, packing.gptq, {"bits": 8}, True),
        ({**GPTQ, "bits": 2}, packing.gptq, {"bits": 2, "group": 16}, False),
        (
            {**GPTQ, "checkpoint_format": "gptq_v2"},
            lambda m: packing.gptq(m, version=2),
            {},
            True,
        ),
        ({**GPTQ, "group_size": 16}, packing.gptq, {"group": 16}, False),
        (AWQ, packing.awq, {}, True),
        ({**AWQ, "group_size": 16}, packing.awq, {"group": 16}, False),
        (compressed("pack-quantized"), packing.pack_quantized, {}, True),
        (
            compressed("pack-quantized"),
            lambda m: packing.pack_quantized(m, zeros="int8"),
            {"group": 96},
            True,
        ),
        (
            compressed("pack-quantized", symmetric=True),
            lambda m: packing.pack_quantized(m, zeros="none"),
            {"symmetric": True},
            True,
        ),
        (
            compressed("pack-quantized", num_bits=8),
            lambda m: packing.pack_quantized(m, zeros="none"),
            {"bits": 8, "symmetric": True},
            True,
        ),
        (
            compressed("pack-quantized", actorder="group"),
            packing.pack_quantized,
            {"act_order": True},
            False,
        ),
        (compressed("int-quantized", num_bits=8), packing.int_quantized, {"bits": 8}, True),
        (
            compressed("naive-quantized", num_bits=8),
            packing.int_quantized,
            {"bits": 8, "group": 96},
            True,
        ),
    ],
)
def test_a_packed_matrix_is_unpacked_exactly(
    folder: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    pack: Any,
    grid: dict[str, Any],
    on_front: bool,
) -> None:
    source, meant = opened(folder, tmp_path / "m", settings, pack, **grid)
    source.check()
    assert len(meant) == 7
    assert source.tensor_names == open_source(folder).tensor_names
    for name, weight in meant.items():
        assert torch.equal(source.read(name), weight)
        matrix = source.quantized_matrix(name)
        assert (matrix is not None) == on_front
        if matrix is not None:
            assert matrix.scales.shape == matrix.zeros.shape == (len(weight), weight.shape[1] // 32)
            assert torch.equal(unrounded(matrix), weight)
    norm = "model.norm.weight"
    assert torch.equal(source.read(norm), open_source(folder).read(norm))
    assert source.quantized_matrix(norm) is None
    assert source.quantization is not None
    assert source.quantization.startswith(("GPTQ", "AWQ", "compressed-tensors"))


def test_the_whole_model_and_its_geometry_come_from_the_unpacked_weights(
    folder: Path, tmp_path: Path
) -> None:
    source, meant = opened(folder, tmp_path / "m", GPTQ, packing.gptq)
    state = source.load_model().state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in meant.items())
    assert source.geometry == open_source(folder).geometry
    assert "quantization_config" not in source.config.to_dict()


def test_a_bundle_of_a_packed_model_holds_its_unpacked_weights(
    folder: Path, tmp_path: Path
) -> None:
    _, meant = opened(folder, tmp_path / "m", AWQ, packing.awq)
    out = tmp_path / "bundle"
    arguments = ["build", "--model", str(tmp_path / "m"), "--split", "1", "--no-calibrate"]
    assert main([*arguments, "--front-bits", "32", "--out", str(out)]) == 0
    back = load_file(out / "cloud" / "back-00001.safetensors")
    assert all(torch.equal(back[name], weight) for name, weight in meant.items())
    config = json.loads((out / "cloud" / "config.json").read_text())
    assert not config.get("quantization_config")


@pytest.mark.parametrize(("block", "strategy"), [([32, 16], "block"), ([32, 40], "block")])
def test_fp8_with_scales_by_block(
    folder: Path, tmp_path: Path, block: list[int], strategy: str
) -> None:
    for kind, settings in (
        ("weight_scale_inv", {**FP8, "weight_block_size": block}),
        ("weight_scale", compressed("float-quantized", strategy=strategy, block_structure=block)),
    ):

        def pack(name: str, shape: tuple[int, int], kind: str = kind) -> Any:
            rng = torch.Generator().manual_seed(len(name))
            codes = torch.randn(shape, generator=rng).to(torch.float8_e4m3fn)
            scales = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]), generator=rng)
            weight = codes.float()
            for n in range(shape[0]):
                for k in range(shape[1]):
                    weight[n, k] *= scales[n // block[0], k // block[1]]
            return {"weight": codes, kind: scales}, weight

        out = tmp_path / kind
        meant = packing.packed_copy(folder, out, settings, pack)
        source = open_source(out)
        assert all(torch.equal(source.read(name), weight) for name, weight in meant.items())
        assert source.quantized_matrix(GATE) is None


@pytest.mark.parametrize("shape_of", [lambda n: (1,), lambda n: (n, 1), lambda n: ()])
def test_fp8_with_scales_by_row_or_matrix_leaves_out_those_of_activations(
    folder: Path, tmp_path: Path, shape_of: Any
) -> None:
    def pack(name: str, shape: tuple[int, int]) -> Any:
        codes = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(
            torch.float8_e4m3fn
        )
        scale = torch.rand(shape_of(shape[0]), generator=torch.Generator().manual_seed(4))
        parts = {"weight": codes, "weight_scale": scale, "input_scale": torch.ones(1)}
        return parts, codes.float() * scale

    meant = packing.packed_copy(folder, tmp_path / "m", {"quant_method": "fp8"}, pack)
    source = open_source(tmp_path / "m")
    assert all(torch.equal(source.read(name), weight) for name, weight in meant.items())
    assert any("scales of activations" in note for note in source.notes)


def test_zero_biases_that_autogptq_adds_are_dropped_and_others_are_not(
    folder: Path, tmp_path: Path
) -> None:
    opened(folder, tmp_path / "m", GPTQ, packing.gptq)
    file = tmp_path / "m" / WHOLE_NAME
    tensors = load_file(file)
    bias = GATE.replace("weight", "bias")
    save_file({**tensors, bias: torch.zeros(96)}, file, metadata={"format": "pt"})
    open_source(tmp_path / "m").check()
    save_file({**tensors, bias: torch.ones(96)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"gate_proj\.bias: not a tensor of the architecture"):
        open_source(tmp_path / "m").check()


def spoiled(change: Any) -> Any:
    """GPTQ parts with a change."""

    def pack(matrix: packing.Quantized) -> packing.Tensors:
        parts = packing.gptq(matrix)
        change(parts)
        return parts

    return pack


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.pop("qzeros"), r"proj\.qzeros is missing"),
        (lambda p: p.pop("scales"), r"proj\.scales is missing"),
        (lambda p: p.update(scales=p["scales"][:, 1:]), r"scales has shape .*asks for"),
        (lambda p: p.update(qzeros=p["qzeros"][:, 1:]), r"qzeros has shape .*asks for"),
        (lambda p: p.update(g_idx=p["g_idx"][1:]), r"g_idx has shape .*asks for"),
        (lambda p: p.update(qweight=p["qweight"].long()), "not GPTQ's int32 words"),
        (lambda p: p.update(qweight=p["qweight"][:, :8]), "has shape"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_in_one_line(
    folder: Path, tmp_path: Path, change: Any, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason) as refused:
        opened(folder, tmp_path / "m", GPTQ, spoiled(change))[0].check()
    assert "\n" not in str(refused.value)


def test_a_group_that_does_not_exist_is_refused(folder: Path, tmp_path: Path) -> None:
    change = spoiled(lambda p: p.update(g_idx=p["g_idx"] + 7))
    source, _ = opened(folder, tmp_path / "m", GPTQ, change)
    with pytest.raises(ModelError, match="g_idx: names a group beyond"):
        source.read(GATE)


def test_a_scale_that_is_not_finite_is_refused(folder: Path, tmp_path: Path) -> None:
    source, _ = opened(
        folder, tmp_path / "m", GPTQ, spoiled(lambda p: p["scales"].fill_(float("inf")))
    )
    for read in (source.read, source.quantized_matrix):
        with pytest.raises(ModelError, match=r"infinite value|holds NaN"):
            read(GATE)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({**GPTQ, "bits": 3}, "GPTQ with 3 bits is not read"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "format 'marlin' is not read"),
        ({**GPTQ, "is_marlin_format": True}, "format 'marlin' is not read"),
        ({**GPTQ, "dynamic": {"+:.*": {"bits": 8}}}, "dynamic"),
        ({**AWQ, "version": "gemv"}, "version 'gemv' is not read"),
        ({**AWQ, "bits": 8}, "AWQ with 8 bits"),
        ({**AWQ, "backend": "llm-awq"}, "'llm-awq' is not read"),
        (compressed("marlin-24"), "format 'marlin-24' is not read"),
        (compressed("nvfp4-pack-quantized"), "format 'nvfp4-pack-quantized' is not read"),
        (
            {**compressed("pack-quantized"), "sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparse weights",
        ),
        (
            {**compressed("pack-quantized"), "transform_config": {"config_groups": {"R1": {}}}},
            "rotated weights",
        ),
        ({**FP8, "weight_block_size": [128]}, "weight_block_size must be two sizes"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "torchao"}, "torchao"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    folder: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    out = tmp_path / "m"
    packing.packed_copy(folder, out, settings, lambda name, shape: ({}, torch.ones(shape)))
    with pytest.raises(ModelError, match=reason) as refused:
        open_source(out)
    assert "\n" not in str(refused.value)
    assert str(out / "config.json") in str(refused.value)


def test_codes_without_a_word_in_the_config_are_refused(folder: Path, tmp_path: Path) -> None:
    opened(folder, tmp_path / "m", GPTQ, packing.gptq)
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"\(gptq.*config\.json does not say how"):
        open_source(tmp_path / "m").check()


def test_packing_means_what_the_formats_documents_say() -> None:
    """One word of each, by hand: the writers of these tests are no copy of the readers."""
    codes = np.arange(8).reshape(8, 1).repeat(8, axis=1)  # output n has code n
    matrix = packing.Quantized(
        4, codes, codes[:, :1] + 1, np.ones((8, 1), np.float16), np.zeros(8, int)
    )
    word = int(packing.awq(matrix)["qweight"][0, 0]) & 0xFFFFFFFF
    assert f"{word:08x}" == "75316420"
    zeros = int(packing.gptq(matrix)["qzeros"][0, 0]) & 0xFFFFFFFF
    assert f"{zeros:08x}" == "76543210"  # one less than 8 7 6 5 4 3 2 1
