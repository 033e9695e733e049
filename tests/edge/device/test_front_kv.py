"""What a front has cached is what transformers caches: of every layout, at any of the splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from edge.device.front import FrontEngine
from edge.device.front_kv import key_places
from optimizer.export.front.front_graph import export_front
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import make_tiny_model

TEXT = np.arange(5, 25)
# Rotations of halves, of pairs and of a part of a head; norms of heads; windows; other scales.
FAMILIES = ("llama", "glm", "ernie4_5", "phi", "qwen3", "gemma3", "granite", "gpt_oss")
NEWEST = 7  # tokens that transformers' cache of a sliding window still holds


def engine(folder: Path, out: Path, splits: tuple[int, ...], **changes: Any) -> FrontEngine:
    source = open_source(folder)
    plan = make_plan(source, splits[-1], back_start=0, max_tokens=32, **changes)
    plan = replace(plan, front_splits=splits if len(splits) > 1 else ())
    out.mkdir()
    export_front(source, plan, out)
    return FrontEngine.load(out, plan=plan)[0]


def cached(model: Any, token_ids: npt.NDArray[np.int64], layers: range) -> npt.NDArray[np.float32]:
    """transformers' own keys and values of the last NEWEST tokens, [T, layers, 2, G, d]."""
    with torch.inference_mode():
        past = model(torch.from_numpy(token_ids)[None], use_cache=True).past_key_values
    pairs = [
        torch.stack([past.layers[layer].keys[0], past.layers[layer].values[0]])[:, :, -NEWEST:]
        for layer in layers
    ]
    return torch.stack(pairs).permute(3, 0, 1, 2, 4).numpy()  # from [n, 2, G, T, d]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_holds_the_models_own_keys_and_values(family: str, tmp_path: Path) -> None:
    whole = make_tiny_model(family, tmp_path / "model")
    front = engine(tmp_path / "model", tmp_path / "edge", (1, 2), kv_bits=32, front_bits=32)
    for begin in range(0, len(TEXT), 7):
        front.forward(TEXT[begin : begin + 7])
    for split in (0, 1):
        kv = front.cached_from(split)
        assert kv is not None
        assert kv.layers == range(split, 2)
        found = kv.read(len(TEXT) - NEWEST, len(TEXT))
        expected = cached(whole, TEXT, kv.layers)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 2e-4 * max(1.0, np.abs(expected).max())
    assert front.cached_from(2) is None


def test_what_was_cached_stays_readable_when_its_layers_are_dropped(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "model")
    front = engine(tmp_path / "model", tmp_path / "edge", (1, 3), kv_bits=16, front_bits=32)
    front.forward(TEXT)
    kv = front.cached_from(1)
    assert kv is not None
    before = kv.read(0, len(TEXT))
    front.move_to(1)
    front.forward(TEXT[:4])
    assert (kv.read(0, len(TEXT)) == before).all()
    assert before.any()


def test_an_eight_bit_cache_is_not_the_models_numbers(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "model")
    front = engine(tmp_path / "model", tmp_path / "edge", (1, 2), kv_bits=8, front_bits=32)
    front.forward(TEXT)
    assert front.cached_from(1) is None


def test_a_front_of_an_older_build_does_not_say_how_its_keys_lie(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "model")
    engine(tmp_path / "model", tmp_path / "edge", (2,), kv_bits=32, front_bits=32)
    path = tmp_path / "edge" / "front.onnx"
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    onnx.save(model, path)
    plan = make_plan(open_source(tmp_path / "model"), 2, back_start=0, max_tokens=32, kv_bits=32)
    front = FrontEngine.load(tmp_path / "edge", plan=plan)[0]
    front.forward(TEXT)
    assert front.cached_from(0) is None


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("0,1,2,3", (0, 1, 2, 3)),
        ("2,-1,0,1", (2, 3, 0)),
        ("0,1,2", None),
        ("0,1,1,3", None),
        ("0,1,2,9", None),
        ("", None),
        ("0,1,2,x", None),
    ],
)
def test_an_order_of_channels_is_checked(text: str, places: tuple[int, ...] | None) -> None:
    assert key_places(text, head_dim=3 if "-1" in text else 4, size=4) == places
