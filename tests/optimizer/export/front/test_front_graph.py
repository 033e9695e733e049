"""The exported front computes what transformers' first layers compute, at every split."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from edge.device.front import FrontEngine
from optimizer.export.sources.model_source import ModelSource, open_source
from tests.local_data import smollm2_model, smollm2_source
from tests.optimizer.export.plans import Rows, make_front, make_plan, worst_row_error
from tests.tiny_models import make_tiny_model

SPLITS = range(5)  # the tiny models have 4 layers
# One of each mechanism that fewer bits may change; test_every_model runs all families.
REDUCED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "granite", "glm4",
           "olmo2", "starcoder2", "phi")  # fmt: skip
FED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "granite",
       "olmo2")  # fmt: skip
TOLERANCE = 1e-5  # relative, float32


class Whole(NamedTuple):
    """A source and its whole model, the reference."""

    source: ModelSource
    model: Any

    def rows(self, ids: npt.NDArray[np.int64], split: int) -> Rows:
        """What layer `split` would get ([T, D]), or all logits ([T, V]) at the last split."""
        with torch.no_grad():
            out = self.model(torch.from_numpy(ids)[None], output_hidden_states=True)
        whole = split == self.source.geometry.num_layers
        rows: Rows = (out.logits if whole else out.hidden_states[split])[0].numpy()
        return rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(family: str) -> Whole:
        folder = tmp_path_factory.mktemp(family)
        model = make_tiny_model(family, folder)
        model.set_attn_implementation("eager")  # the plainest: soft caps and windows spelled out
        return Whole(open_source(folder), model)

    return make


@pytest.fixture(scope="module")
def real() -> Whole:
    return Whole(smollm2_source(), smollm2_model())


def random_ids(count: int, vocab_size: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(3, vocab_size, count)


def check_all_ways_of_feeding(front: FrontEngine, whole: Whole, split: int) -> None:
    """Prefill, 8-token and single steps on top of it, and again after a rollback."""
    vocab_size = whole.source.geometry.vocab_size
    ids = random_ids(40, vocab_size, seed=1)
    other = np.concatenate([ids[:10], random_ids(30, vocab_size, seed=2)])
    last_only = split == whole.source.geometry.num_layers

    def check(sequence: npt.NDArray[np.int64], expected: Rows, start: int, end: int) -> None:
        assert front.num_tokens == start
        wanted = expected[end - 1 : end] if last_only else expected[start:end]
        got = front.forward(sequence[start:end])
        assert worst_row_error(got, wanted) < TOLERANCE, f"tokens {start} to {end}"

    expected = whole.rows(ids, split)
    for start, end in ((0, 20), (20, 28), (28, 36), (36, 37), (37, 38), (38, 40)):
        check(ids, expected, start, end)
    front.rollback(10)  # another continuation: a stale cache would show
    expected = whole.rows(other, split)
    for start, end in ((10, 18), (18, 19), (19, 40)):
        check(other, expected, start, end)
    front.reset()
    check(other, expected, 0, 40)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("family", FED)
def test_a_front_computes_the_first_layers(
    tiny: Any, tmp_path: Path, family: str, split: int
) -> None:
    whole = tiny(family)
    front = make_front(whole.source, make_plan(whole.source, split), tmp_path)
    check_all_ways_of_feeding(front, whole, split)


@pytest.mark.real_model
@pytest.mark.parametrize("split", [0, 1, 10, 29, 30])
def test_a_front_of_smollm2_computes_its_first_layers(
    real: Whole, tmp_path: Path, split: int
) -> None:
    front = make_front(real.source, make_plan(real.source, split), tmp_path)
    check_all_ways_of_feeding(front, real, split)


# The error bounds: twice what was measured on these seeds. Random weights at a large scale
# amplify every rounding, so these are bounds on blunders; test_front_precision bounds quality.
@pytest.mark.parametrize(
    ("front_bits", "kv_bits", "bound"),
    [(16, 32, 8e-3), (32, 16, 8e-3), (8, 32, 0.15), (32, 8, 0.7), (4, 32, 1.3)],
)
@pytest.mark.parametrize("family", REDUCED)
def test_a_reduced_front_of_each_family_stays_within_its_bound(
    tiny: Any, tmp_path: Path, family: str, front_bits: int, kv_bits: int, bound: float
) -> None:
    whole = tiny(family)
    plan = make_plan(whole.source, 2, front_bits=front_bits, kv_bits=kv_bits)
    front = make_front(whole.source, plan, tmp_path)
    ids = random_ids(40, whole.source.geometry.vocab_size, seed=1)
    expected = whole.rows(ids, 2)
    got = np.concatenate([front.forward(part) for part in np.split(ids, [20, 28, 29])])
    assert worst_row_error(got, expected) < bound


@pytest.mark.parametrize("front_bits", [4, 8])
def test_an_exact_front_gives_one_row_what_it_gives_eight(
    tiny: Any, tmp_path: Path, front_bits: int
) -> None:
    source = tiny("llama").source
    plan = make_plan(source, 3, front_bits=front_bits, exact_front=True)
    front = make_front(source, plan, tmp_path)
    ids = random_ids(16, source.geometry.vocab_size, seed=3)
    together = np.concatenate([front.forward(ids[:8]), front.forward(ids[8:])])
    front.reset()
    one_by_one = np.concatenate([front.forward(ids[i : i + 1]) for i in range(16)])
    assert worst_row_error(one_by_one, together) < TOLERANCE


def test_fewer_bits_make_smaller_files(tiny: Any, tmp_path: Path) -> None:
    source = tiny("llama").source
    sizes = {}
    for bits in (4, 8, 16, 32):
        make_front(source, make_plan(source, 2, front_bits=bits), tmp_path / str(bits))
        sizes[bits] = sum(path.stat().st_size for path in (tmp_path / str(bits)).iterdir())
    assert sizes[4] < sizes[8] < sizes[16] < sizes[32]


def test_a_front_holds_no_tensor_of_the_back_and_no_mask(tiny: Any, tmp_path: Path) -> None:
    source = tiny("mistral").source
    make_front(source, make_plan(source, 1), tmp_path)
    model = onnx.load(tmp_path / "front.onnx", load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    assert not {name for name in weights if "layers.1" in name or "lm_head" in name}
    assert {value.name for value in model.graph.input} == {
        "input_ids",
        "seqlens_k",
        "total_sequence_length",
        "past_key_values.0.key",
        "past_key_values.0.value",
    }
