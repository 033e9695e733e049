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
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return geometry


@pytest.mark.parametrize("name", shipped_specs())
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
