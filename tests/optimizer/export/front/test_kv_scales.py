"""An 8-bit cache's scales hold for every position and layout, and on text that they never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor

from optimizer.errors import ModelError
from optimizer.export.calibration.hidden_states import back_logits, cache_argument
from optimizer.export.front.kv_scales import (
    INT8_MAX,
    KvPeaks,
    KvScales,
    RotaryLayout,
    pair_lengths,
)
from optimizer.export.front.sample_text import LEAST_TOKENS, SAMPLE_TEXT, sample_windows
from tests.local_data import smollm2_model, smollm2_source
from tests.tiny_models import make_tiny_model

LAYOUTS = [RotaryLayout(rotated=rotated) for rotated in (64, 48, 32)]  # of 64 channels


def turned(keys: Tensor, layout: RotaryLayout, angle: Tensor) -> Tensor:
    """Keys with every pair turned by one angle."""
    half = layout.rotated // 2
    first, second = slice(0, half), slice(half, layout.rotated)
    out = keys.clone()
    out[..., first] = keys[..., first] * angle.cos() - keys[..., second] * angle.sin()
    out[..., second] = keys[..., second] * angle.cos() + keys[..., first] * angle.sin()
    return out


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_no_rotation_takes_a_channel_beyond_its_pairs_length(layout: RotaryLayout) -> None:
    keys = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3))
    lengths = pair_lengths(keys, layout)
    assert lengths.shape == keys.shape
    reached = torch.zeros_like(keys)
    for angle in torch.linspace(0, 6.3, 200):
        sizes = turned(keys, layout, angle).abs()
        assert bool((sizes <= lengths + 1e-5).all())
        reached = torch.maximum(reached, sizes)
    torch.testing.assert_close(reached, lengths, rtol=2e-3, atol=1e-4)  # and no larger than needed
    torch.testing.assert_close(lengths[..., layout.rotated :], keys[..., layout.rotated :].abs())


def test_peaks_are_those_of_all_that_was_added_in_any_order() -> None:
    parts = torch.randn(2, 3, 2, 7, 16, generator=torch.Generator().manual_seed(1))
    whole, apart = (KvPeaks(RotaryLayout(rotated=16)) for _ in range(2))
    whole.add(0, parts[0], parts[1])
    for index in (2, 0, 1):
        apart.add(0, parts[0, index], parts[1, index])
    assert whole.scales() == apart.scales()
    assert len(whole.scales().keys[0]) == 32


def test_a_value_that_is_not_finite_is_refused_with_its_layer() -> None:
    keys = torch.ones(2, 3, 16)
    with pytest.raises(ModelError, match="layer 4: keys or values"):
        KvPeaks(RotaryLayout(rotated=16)).add(4, keys, keys / 0)


def test_the_text_that_ships_is_long_enough_in_any_tokens(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    windows = sample_windows(tokenizer, 256)
    assert windows.numel() >= LEAST_TOKENS
    assert windows.shape[1] == 256
    assert str(tokenizer.decode(windows[0])).startswith("The river had risen")

    class Coarse:  # a tokenizer of forty characters a token
        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": list(range(len(text) // 40))}

    assert sample_windows(Coarse(), 64).numel() >= LEAST_TOKENS


class Measured(NamedTuple):
    """By split: the worst row's error relative to its length, and KL a token."""

    worst_row: list[float]
    divergence: list[float]


class RoundedCache(transformers.DynamicCache):
    """A cache that gives back what 8 bits with these scales keep."""

    def __init__(self, scales: KvScales) -> None:
        super().__init__()
        self.scales = scales

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kw: Any
    ):
        keys = rounded(key_states, self.scales.keys[layer_idx])
        values = rounded(value_states, self.scales.values[layer_idx])
        return super().update(keys, values, layer_idx, *args, **kw)


def rounded(states: Tensor, scales: tuple[float, ...]) -> Tensor:
    steps = torch.tensor(scales).view(states.shape[1], 1, states.shape[-1])
    return (states / steps).round().clamp(-INT8_MAX - 1, INT8_MAX) * steps


def measure(model: Any, scales: KvScales, ids: Tensor, *, with_tokens: bool) -> Measured:
    """The front's error at every split 1..L-1 with a rounded cache, and what it does to tokens."""
    with torch.no_grad():
        plain = model(ids[None], output_hidden_states=True, use_cache=False)
        spoiled = model.model(
            ids[None],
            output_hidden_states=True,
            use_cache=True,
            **{cache_argument(model.model): RoundedCache(scales)},
        )
    expected = plain.logits[0, :KL_ROWS].log_softmax(-1)
    worst, divergence = [], []
    for split in range(1, model.config.num_hidden_layers):
        right, wrong = plain.hidden_states[split][0], spoiled.hidden_states[split][0]
        worst.append(float(((wrong - right).norm(dim=-1) / right.norm(dim=-1)).max()))
        if not with_tokens:
            continue
        found = back_logits(model, split, wrong[:KL_ROWS], ids[:KL_ROWS]).log_softmax(-1)
        divergence.append(float((expected.exp() * (expected - found)).sum(-1).mean()))
    return Measured(worst, divergence)


def add_window(peaks: KvPeaks, model: Any, ids: Tensor) -> None:
    """Run token ids [T] through a transformers model and add its layers' keys and values."""
    cache: Any = transformers.DynamicCache()
    with torch.no_grad():
        model.model(input_ids=ids[None], use_cache=True, **{cache_argument(model.model): cache})
    for layer in range(model.config.num_hidden_layers):
        peaks.add(layer, cache.layers[layer].keys[0], cache.layers[layer].values[0])


KL_ROWS = 80  # of the text, to save time: a pass of the back for every split
UNSEEN = """\
The committee met for the last time in October. Of the 27 proposals, 19 had been withdrawn, mostly
by people who no longer remembered writing them. "We could build a bridge," said the treasurer.

```python
for row in csv.DictReader(open("births_1850.csv")):
    years[int(row["year"])] += float(row["weight_kg"] or 0)
```

Als der Regen kam, liefen alle ins Haus. Nur der Hund blieb draussen und bellte die Wolken an.
POST /v1/orders HTTP/1.1 Host: shop.example.com {"sku": "A-1193", "count": 12, "gift": false}
In 1911 the ship left Bergen with 43 men, 96 dogs and 2,200 kg of dried fish on board.
"""


@pytest.mark.real_model
def test_scales_from_the_text_that_ships_hold_on_other_text_at_every_split() -> None:
    model, tokenizer = smollm2_model(), smollm2_source().load_tokenizer()
    ids = torch.tensor(tokenizer(UNSEEN)["input_ids"])
    shipped, short = (KvPeaks(RotaryLayout(rotated=64)) for _ in range(2))
    for window in sample_windows(tokenizer, model.config.max_position_embeddings):
        add_window(shipped, model, window)
    add_window(short, model, torch.tensor(tokenizer(SAMPLE_TEXT)["input_ids"]))
    found = measure(model, shipped.scales(), ids, with_tokens=True)
    before = measure(model, short.scales(), ids, with_tokens=False)
    # Measured: 0.065 and 2.3e-3 at most; with the short text the worst row is 35 % off.
    assert max(found.worst_row) < 0.1
    assert max(found.divergence) < 4e-3
    assert found.divergence[9] < 1e-3
    assert max(before.worst_row) > 3 * max(found.worst_row)
