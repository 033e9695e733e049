"""What fewer bits cost in the hidden state, on trained weights that were never quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from optimizer.export.sources.model_source import ModelSource, open_source
from tests.examples.test_convert_stories260k import load_example
from tests.local_data import shared_data
from tests.optimizer.export.plans import Rows, make_front, make_plan

SPLIT = 3


class Story(NamedTuple):
    """The stories260K model, the tokens of its golden story, and their rows at SPLIT."""

    source: ModelSource
    ids: npt.NDArray[np.int64]
    rows: Rows


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    data = shared_data("models/stories260k")
    folder = tmp_path_factory.mktemp("stories")
    load_example().convert(data, folder)
    source = open_source(folder)
    ids = np.array(json.loads((data / "golden.json").read_text())["greedy_ids_from_bos"][:80])
    model: Any = source.load_model().eval()
    with torch.no_grad():
        out = model(torch.from_numpy(ids)[None], output_hidden_states=True)
    return Story(source, ids, out.hidden_states[SPLIT][0].numpy())


def median_error(story: Story, folder: Path, **changes: Any) -> float:
    """Median over the rows of a row's error relative to its own length."""
    front = make_front(story.source, make_plan(story.source, SPLIT, **changes), folder)
    rows = np.concatenate([front.forward(part) for part in np.split(story.ids, [64, 72, 73])])
    difference = np.linalg.norm(rows - story.rows, axis=-1)
    return float(np.median(difference / np.linalg.norm(story.rows, axis=-1)))


# Measured with 200 tokens: 3.3e-4, 1.3e-2, 0.14 for the weights, 8e-4 and 3.2e-2 for the cache.
@pytest.mark.parametrize(("front_bits", "bound"), [(16, 1e-3), (8, 0.03), (4, 0.25)])
def test_fewer_weight_bits_cost_what_is_stated(
    story: Story, tmp_path: Path, front_bits: int, bound: float
) -> None:
    assert median_error(story, tmp_path, front_bits=front_bits) < bound


@pytest.mark.parametrize(("kv_bits", "bound"), [(16, 2e-3), (8, 0.08)])
def test_fewer_cache_bits_cost_what_is_stated(
    story: Story, tmp_path: Path, kv_bits: int, bound: float
) -> None:
    assert median_error(story, tmp_path, kv_bits=kv_bits) < bound


def test_more_weight_bits_are_always_better(story: Story, tmp_path: Path) -> None:
    errors = [median_error(story, tmp_path / str(b), front_bits=b) for b in (32, 16, 8, 4)]
    assert errors == sorted(errors)
    assert errors[0] < 1e-5
