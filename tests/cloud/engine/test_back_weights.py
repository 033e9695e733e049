"""Loading a back: only what is asked for, and every defect named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import BackFiles, compute_dtype, load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.profiled_kernels import write_random_back
from cloud.errors import WeightsError
from cloud.kv.pool import KvPool
from hwprofiles.profiler.measured_backends import StackShape
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.cost.cloud import back_compute_bits, back_kv_bits
from optimizer.cost.weights import back_weight_bytes
from optimizer.export.back import write_back
from optimizer.export.sources.model_source import open_source
from optimizer.families import position_limit
from tests.cloud.tiny_bundle import save_back
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model


@pytest.fixture
def back(tmp_path: Path) -> Path:
    save_back(make_tiny_model("llama", tmp_path / "source"), tmp_path / "cloud", first_layer=2)
    return tmp_path / "cloud"


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    path = folder / "back-00001.safetensors"
    stored = load_file(path)
    del stored[name]
    if tensor is not None:
        stored[name] = tensor
    save_file(stored, path)


def test_only_the_back_is_loaded(back: Path) -> None:
    model = load_back(back, first_layer=2)
    assert (model.first_layer, model.num_layers, len(model.layers)) == (2, 4, 2)
    stored = load_file(back / "back-00001.safetensors")
    assert model.num_bytes == sum(4 * tensor.numel() for tensor in stored.values())


def test_a_missing_tensor_is_named(back: Path) -> None:
    change(back, "model.layers.3.mlp.up_proj.weight", None)
    with pytest.raises(WeightsError, match=r"model\.layers\.3\.mlp\.up_proj\.weight is missing"):
        load_back(back, first_layer=2)
    with pytest.raises(WeightsError, match=r"model\.layers\.1\..* is missing"):
        load_back(back, first_layer=1)


def test_a_wrong_shape_is_named_with_both_shapes(back: Path) -> None:
    change(back, "model.norm.weight", torch.zeros(65))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight .*\(65,\).*\(64,\)"):
        load_back(back, first_layer=2)


@pytest.mark.parametrize("parts", [{"": (319, 64)}, {".int8": (320, 64), ".scale": (319,)}])
def test_an_embedding_of_another_shape_is_named(
    tmp_path: Path, parts: dict[str, tuple[int, ...]]
) -> None:
    save_back(make_tiny_model("mistral", tmp_path / "source"), tmp_path / "cloud")
    assert load_back(tmp_path / "cloud", first_layer=0).embedding is None
    path = tmp_path / "cloud" / "back-00001.safetensors"
    tables = {
        f"model.embed_tokens.weight{suffix}": torch.zeros(
            shape, dtype=torch.int8 if suffix == ".int8" else torch.float32
        )
        for suffix, shape in parts.items()
    }
    save_file({**load_file(path), **tables}, path)
    with pytest.raises(WeightsError, match=r"embed_tokens\.weight.* has shape \(319.*\(320"):
        load_back(tmp_path / "cloud", first_layer=0)


def test_a_damaged_file_is_named(back: Path) -> None:
    path = back / "back-00001.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"back-00001\.safetensors: not readable"):
        load_back(back, first_layer=2)


def test_an_unsupported_model_is_refused_with_the_supported_ones(back: Path) -> None:
    config = json.loads((back / "config.json").read_text())
    (back / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(WeightsError, match=r"'gpt2' are not supported.*llama.*phi3"):
        load_back(back, first_layer=2)


def test_bfloat16_weights_are_computed_in_float32_on_a_cpu(back: Path) -> None:
    path = back / "back-00001.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(halves, path)
    half = BackEngine(load_back(back, first_layer=2))
    save_file({name: tensor.float() for name, tensor in halves.items()}, path)
    full = BackEngine(load_back(back, first_layer=2))
    rows = torch.randn(9, 64)
    pool = KvPool(half.kv_shape, limit_bytes=1 << 20)
    answers = []
    for engine in (half, full):
        with pool.lease(split=2, max_tokens=9) as lease:
            answers += engine.forward([BatchEntry(lease=lease, rows=rows, num_logits=9)])
    assert answers[0].dtype == torch.float32
    assert torch.equal(answers[0], answers[1])


def test_sessions_stay_within_the_length_at_which_rotary_frequencies_are_constant() -> None:
    plain = transformers.LlamaConfig(max_position_embeddings=4096)
    assert position_limit(plain) == 4096
    half = 32
    long = transformers.AutoConfig.for_model(
        "phi3",
        max_position_embeddings=4096,
        original_max_position_embeddings=1024,
        hidden_size=128,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0] * half,
            "long_factor": [2.0] * half,
        },
    )
    assert position_limit(long) == 1024


def replace_by_zeros(file: Path) -> None:
    """Another file under the same name, as a new build puts it there."""
    zeros = {name: tensor * 0 for name, tensor in load_file(file).items()}
    save_file(zeros, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def test_a_file_that_is_replaced_while_layers_are_read_is_refused(back: Path) -> None:
    files = BackFiles(back, first_layer=2)
    files.layer(2)
    files.unmap()
    replace_by_zeros(back / "back-00001.safetensors")
    with pytest.raises(WeightsError, match="was replaced while it was read"):
        files.layer(3)


def test_rows_of_tokens_come_from_the_files_that_were_loaded(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "model")
    source = open_source(tmp_path / "model")
    (tmp_path / "cloud").mkdir()
    write_back(source, make_plan(source, 2, back_start=0), tmp_path / "cloud")
    embedding = load_back(tmp_path / "cloud", first_layer=0).embedding
    assert embedding is not None
    expected = source.read("model.embed_tokens.weight")[7].float()
    replace_by_zeros(tmp_path / "cloud" / "back-00001.safetensors")
    assert (embedding.rows([7])[0] == expected.numpy()).all()


def test_only_the_weight_files_that_are_named_are_read(back: Path) -> None:
    listed = back / "back-00001.safetensors"
    zeros = {name: tensor * 0 for name, tensor in load_file(listed).items()}
    save_file(zeros, back / "zzz.safetensors")
    model = load_back(back, first_layer=2, weight_files=[listed])
    assert all(parameter.abs().sum() > 0 for parameter in model.norm.parameters())
    with pytest.raises(WeightsError, match=r"zzz\.safetensors: another file holds"):
        load_back(back, first_layer=2)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        '{"model_type": "llama", "model_type": "llama"}',
        '{"model_type": "llama", "num_hidden_layers": 1000000000}',
        '{"model_type": "llama", "num_hidden_layers": "four"}',
        '{"model_type": "llama", "hidden_size": 1e999}',
        '{"model_type": "llama", "hidden_size": -64, "num_hidden_layers": 4}',
        '{"model_type": "llama", "rope_parameters": 7}',
        '{"model_type": ["llama"]}',
        '{"model_type": "llama", "auto_map": {"AutoConfig": "evil.Config"}}',
    ],
)
def test_a_hostile_config_is_named(back: Path, text: str) -> None:
    (back / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json|is missing|has shape") as caught:
        load_back(back, first_layer=2)
    assert "\n" not in str(caught.value)


SHAPE = StackShape(width=256, inner=768, num_heads=4, num_kv_heads=2, head_dim=64, vocab_size=2000)
GEOMETRY = ModelGeometry(
    architecture="llama",
    vocab_size=2000,
    hidden_size=256,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=768,
    context_length=2048,
    tied_embeddings=False,
)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("server", ["local-epyc-2core-cloud", "a100-80gb"])
def test_a_plan_counts_the_weights_and_the_cache_that_the_server_holds(
    tmp_path: Path, server: str, bits: int
) -> None:
    device = load_device(server)
    kind = device.platform.engine.removeprefix("torch-")
    dtype = compute_dtype(kind, has_float32_matrices=bits == 32)
    stored = torch.bfloat16 if bits == 16 else torch.float32
    write_random_back(tmp_path, SHAPE, num_layers=3, weight_bits=bits, dtype=stored)
    model = load_back(tmp_path, first_layer=0, dtype=dtype)
    planned = back_weight_bytes(GEOMETRY, 0, back_compute_bits(device, bits))
    assert model.num_bytes == pytest.approx(planned, rel=0.01)
    engine = BackEngine(model)
    assert 8 * engine.kv_shape.dtype.itemsize == back_kv_bits(device, bits)
    # And it runs: near the same weights in float32.
    exact = BackEngine(load_back(tmp_path, first_layer=0))
    rows = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    answers = []
    for each in (engine, exact):
        with KvPool(each.kv_shape, limit_bytes=1 << 20).lease(split=0, max_tokens=5) as lease:
            answers += each.forward([BatchEntry(lease=lease, rows=rows, num_logits=5)])
    error = (answers[0].float() - answers[1]).norm() / answers[1].norm()
    assert error < (0.03 if dtype == torch.bfloat16 else 1e-6)


def test_a_server_without_an_exact_int8_product_counts_what_it_widens_to() -> None:
    device = load_device("local-epyc-2core-cloud")
    kernels = tuple(replace(kernel, compute="fp32") for kernel in device.kernels)
    assert back_compute_bits(device, 8) == 8
    assert back_compute_bits(replace(device, kernels=kernels), 8) == 32
