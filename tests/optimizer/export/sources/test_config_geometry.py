"""Geometry from a Hugging Face config alone: models of 70 billion weights plan without them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.artifacts.specs import load_spec, shipped_specs
from optimizer.errors import ModelError
from optimizer.export.sources.config_geometry import geometry_of_config
from optimizer.families import FAMILIES
from splitpoint.plan_inputs import model_ref

FAMILY_OF = {family.architecture: family for family in FAMILIES}

# Planning may know a model before a front can be exported of it.
READABLE = [
    name
    for name in shipped_specs()
    if (family := FAMILY_OF.get(load_spec(name).geometry.architecture)) and family.on_front
]


def write_config(folder: Path, name: str) -> Any:
    """The config that the spec's numbers were read from, as its hub repository has it."""
    geometry = load_spec(name).geometry
    family = FAMILY_OF[geometry.architecture]
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "num_hidden_layers": geometry.num_layers,
        "hidden_size": geometry.hidden_size,
        "num_attention_heads": geometry.num_heads,
        "num_key_value_heads": geometry.num_kv_heads,
        "head_dim": geometry.head_dim,
        "intermediate_size": geometry.intermediate_size,
        "vocab_size": geometry.vocab_size,
        "max_position_embeddings": geometry.context_length,
        "tie_word_embeddings": geometry.tied_embeddings,
        "pad_token_id": 0,
    }
    if geometry.sliding_window is not None:
        config["sliding_window"] = geometry.sliding_window
    elif family.sliding_windows:
        config["sliding_window"] = None
    if family.experts is not None:
        config[family.experts.count] = geometry.num_experts
        config["num_experts_per_tok"] = geometry.experts_per_token
        config["moe_intermediate_size"] = geometry.expert_size
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return geometry


@pytest.mark.parametrize("name", READABLE)
def test_a_config_without_weights_gives_the_shipped_specs_geometry(
    name: str, tmp_path: Path
) -> None:
    expected = write_config(tmp_path / name, name)
    found = geometry_of_config(tmp_path / name)
    # Which layers slide is spelled out by some configs and implied by others.
    assert replace(found, sliding_layers=()) == replace(expected, sliding_layers=())


def test_planning_takes_a_folder_or_a_config_without_weights(tmp_path: Path) -> None:
    geometry = write_config(tmp_path / "big", "llama-3.1-70b")
    for path in (tmp_path / "big", tmp_path / "big" / "config.json"):
        found = model_ref(str(path))
        assert (found.id, found.sha256, found.geometry) == ("big", "", geometry)


def test_a_config_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="not a readable model config"):
        geometry_of_config(tmp_path)


def test_a_hub_id_needs_its_config_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    geometry = write_config(tmp_path / "snapshot", "qwen3-4b")
    asked: list[tuple[str, str]] = []

    def hub(name: str, file: str) -> str:
        asked.append((name, file))
        return str(tmp_path / "snapshot" / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    found = model_ref("Qwen/Qwen3-4B")
    assert (found.id, found.sha256, found.geometry) == ("Qwen/Qwen3-4B", "", geometry)
    assert asked == [("Qwen/Qwen3-4B", "config.json")]


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(name: str, file: str) -> str:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    with pytest.raises(ModelError, match=r"^a/b: no such file.*\(no route to host\)$"):
        model_ref("a/b")
