"""Bytes of weights: published parameter counts, hand arithmetic, and a real exported front."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.specs import load_spec, shipped_specs
from optimizer.cost.weights import (
    back_weight_bytes,
    embedding_bytes,
    front_layer_bytes,
    layer_matrices,
    layer_vector_bytes,
    stored_layer_weights,
)
from optimizer.errors import ModelError
from optimizer.export.sources.config_geometry import geometry_of
from tests.tiny_models import COMMON, CONFIGS, FAMILY_OF

EXPECTED = {
    "llama-2-7b", "llama-2-13b", "llama-3.1-8b", "llama-3.1-70b", "qwen2.5-7b", "qwen3-8b",
    "mistral-7b", "gemma-2-9b", "phi-3-mini", "smollm2-135m", "smollm2-360m", "smollm2-1.7b",
    "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-14b", "qwen3-32b", "llama-3.2-1b",
    "llama-3.2-3b", "gemma-3-1b", "gemma-3-4b", "gemma-3-12b", "gemma-3-27b", "phi-4-mini",
    "smollm3-3b", "mistral-small-3", "gpt-oss-20b", "qwen3-30b-a3b",
}  # fmt: skip


def test_the_promised_specs_are_shipped() -> None:
    assert set(shipped_specs()) >= EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_spec_has_the_published_number_of_parameters(name: str) -> None:
    spec = load_spec(name)
    geometry = spec.geometry
    layer = stored_layer_weights(geometry) + layer_vector_bytes(geometry) // 4
    tables = 1 if geometry.tied_embeddings else 2
    counted = geometry.num_layers * layer + geometry.hidden_size
    counted += tables * geometry.vocab_size * geometry.hidden_size
    # Gemma has more norms a layer, Qwen 3 norms of its heads, gpt-oss biases of its experts.
    most = 1e-3 if geometry.num_experts else 1e-4
    assert counted == pytest.approx(spec.num_parameters, rel=most)
    if spec.geometry.architecture in ("LlamaForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM"):
        assert counted == spec.num_parameters


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_familys_layer_has_the_matrices_that_are_counted(family: str) -> None:
    changes: dict[str, Any] = {"mlp_only_layers": []} if family == "qwen3_moe" else {}
    config = transformers.AutoConfig.for_model(
        FAMILY_OF[family].model_type, **{**COMMON, **CONFIGS[family], **changes}
    )
    config.architectures = [FAMILY_OF[family].architecture]
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    layer = model.get_decoder().layers[0]
    named = layer.named_parameters()
    matrices = sum(p.numel() for name, p in named if p.ndim > 1 and not name.endswith("bias"))
    geometry = geometry_of(config)
    assert stored_layer_weights(geometry) == matrices
    resting = geometry.num_experts - geometry.experts_per_token
    read = sum(matrix.num_weights for matrix in layer_matrices(geometry))
    assert read == matrices - resting * 3 * geometry.hidden_size * geometry.expert_size


def test_an_unknown_spec_names_those_there_are() -> None:
    with pytest.raises(ModelError, match="llama-2-7b"):
        load_spec("gpt-5")


def test_smollm_layer_bytes_by_hand() -> None:
    geometry = load_spec("smollm2-135m").geometry
    weights = 576 * 960 + 576 * 576 + 3 * 576 * 1536  # 3,538,944
    norms = 2 * 576 * 4
    assert front_layer_bytes(geometry, 32) == 4 * weights + norms
    assert front_layer_bytes(geometry, 16) == 2 * weights + norms
    assert front_layer_bytes(geometry, 8) == weights + weights / 32 * 4 + norms
    assert front_layer_bytes(geometry, 4) == weights / 2 + weights / 32 * 4.5 + norms
    # 8 bits, a scale and a zero point a block, in 4-bit fronts too.
    assert embedding_bytes(geometry, 8) == 49152 * 576 * (1 + 5 / 32)
    assert embedding_bytes(geometry, 4) == embedding_bytes(geometry, 8)


def test_front_and_back_partition_the_layers_at_equal_bits() -> None:
    geometry = load_spec("llama-2-7b").geometry
    whole = back_weight_bytes(geometry, 0, 16)
    layer = front_layer_bytes(geometry, 16)
    for split in (0, 1, 16, 31):
        assert back_weight_bytes(geometry, split, 16) + split * layer == pytest.approx(whole)
    assert whole == pytest.approx(
        2 * (load_spec("llama-2-7b").num_parameters - 32000 * 4096), rel=1e-3
    )


def test_the_bytes_predicted_are_those_of_an_exported_front(tiny_front) -> None:
    geometry, split, bits, held = tiny_front
    # The graph's own bytes and alignment: a few kilobytes.
    predicted = embedding_bytes(geometry, bits) + split * front_layer_bytes(geometry, bits)
    tables = 2 * 4 * 32 * geometry.head_dim // 2  # cosines and sines of the plan's positions
    assert predicted + tables == pytest.approx(held, abs=16_384)


@pytest.fixture(params=[4, 8, 32])
def tiny_front(request: pytest.FixtureRequest, tmp_path) -> tuple[ModelGeometry, int, int, int]:
    """A front of two layers of a random model, and the bytes of its weights file."""
    onnx = pytest.importorskip("onnx")
    from optimizer.artifacts.plan import ModelRef, Partition, Plan
    from optimizer.export.front.front_graph import export_front
    from optimizer.export.sources.model_source import open_source
    from tests.tiny_models import make_tiny_model

    make_tiny_model("llama", tmp_path / "model")
    source = open_source(tmp_path / "model")
    plan = Plan(
        model=ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry),
        partition=Partition(split=2, front_bits=request.param, back_bits=32),
        back_start=2, kv_bits=32, level="lossless", max_tokens=32, prefill_chunk=8,
    )  # fmt: skip
    edge_dir = tmp_path / "edge"
    edge_dir.mkdir()
    export_front(source, plan, edge_dir)
    model = onnx.load(edge_dir / "front.onnx")
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    return source.geometry, 2, request.param, held
