"""Layers that are loaded one at a time give what transformers' whole model gives, in any family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optimizer.errors import BuildError, ModelError
from optimizer.export.calibration.hidden_states import hidden_and_logits
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.layers.passes import (
    drawn_tokens,
    finish,
    gradients_at,
    states_after,
    states_at,
)
from optimizer.export.layers.rows_on_disk import HiddenRows
from optimizer.export.layers.tensor_source import ModelTensors
from tests.tiny_models import BACK_FAMILIES, make_tiny_model

WINDOWS = np.random.default_rng(3).integers(4, 300, (3, 40))


@pytest.fixture(scope="module")
def whole_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`whole_of(family)` gives transformers' tiny model of any family that the server runs."""
    made: dict[str, Any] = {}

    def whole(family: str) -> Any:
        if family not in made:
            made[family] = make_tiny_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return whole


def quiet(what: str, done: int, total: int) -> None:
    """A progress that shows nothing."""


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "streamed"])
@pytest.mark.parametrize("family", BACK_FAMILIES)
def test_states_and_logits_are_the_whole_models(
    whole_of: Any, family: str, keep: bool, tmp_path: Path
) -> None:
    whole = whole_of(family)
    model = LayeredModel(ModelTensors(whole), folder=tmp_path, keep=keep)
    splits = [0, 2, model.num_layers]
    found = states_at(model, splits, WINDOWS, quiet)
    finish(model, found[2], 2, quiet, what="the rest")
    for at, ids in enumerate(WINDOWS):
        tokens = torch.from_numpy(ids)
        for split in (0, model.num_layers):
            expected, logits = hidden_and_logits(whole, split, tokens)
            torch.testing.assert_close(
                found[split].read(at, at + 1)[0], expected, rtol=1e-4, atol=3e-5
            )
        got = model.logits(found[2].read(at, at + 1)[0])
        torch.testing.assert_close(got, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", BACK_FAMILIES)
def test_a_row_after_one_token_is_what_the_pair_of_tokens_gives(
    whole_of: Any, family: str, tmp_path: Path
) -> None:
    whole = whole_of(family)
    model = LayeredModel(ModelTensors(whole), folder=tmp_path, keep=False)
    listed = np.array([4, 9, 77, 200])
    found = states_after(model, [3], listed, 9, quiet)[3]
    for row, token in zip(found, listed, strict=True):
        pair, _ = hidden_and_logits(whole, 3, torch.tensor([9, token]))
        np.testing.assert_allclose(row, pair[1].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", BACK_FAMILIES)
def test_streamed_gradients_are_those_of_the_graph(
    whole_of: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backwards through layers that are computed or loaded again, against a graph of all layers."""
    whole = whole_of(family)
    slopes = []
    for keep, graphs in ((True, True), (False, False), (True, False)):
        monkeypatch.setattr(LayeredModel, "keeps_graphs", property(lambda _, held=graphs: held))  # type: ignore[misc]
        model = LayeredModel(ModelTensors(whole), folder=tmp_path, keep=keep)
        entered = states_at(model, [1], WINDOWS, quiet)[1]
        generator = torch.Generator().manual_seed(1)
        found = gradients_at(model, [1, 3], entered, generator, quiet)
        slopes.append({split: rows.read(0, len(rows)) for split, rows in found.items()})
    for split in (1, 3):
        error = (slopes[1][split] - slopes[0][split]).norm() / slopes[0][split].norm()
        # The inputs lie in 16 bits; experts that lie close may be chosen otherwise.
        assert error < (0.15 if family in ("gpt_oss", "qwen3_moe") else 0.02)
        assert slopes[0][split].norm() > 0
        torch.testing.assert_close(slopes[2][split], slopes[0][split])  # from float32 inputs


def test_streamed_layers_are_dropped_and_kept_ones_are_not(tiny: Any, tmp_path: Path) -> None:
    reads: list[str] = []
    source = tiny("llama").source
    for keep, again in ((True, 0), (False, 4)):
        model = LayeredModel(source, folder=tmp_path, keep=keep)
        states_at(model, [4], WINDOWS, quiet)
        inner = model._fill

        def counted(module: Any, prefix: str, fill: Any = inner) -> None:
            reads.append(prefix)
            fill(module, prefix)

        model._fill = counted  # type: ignore[method-assign]
        states_at(model, [4], WINDOWS, quiet)
        assert len(reads) == again


def test_on_the_way_back_a_layer_is_loaded_once_for_all_windows(tiny: Any, tmp_path: Path) -> None:
    model = LayeredModel(tiny("llama").source, folder=tmp_path, keep=False)
    entered = states_at(model, [1], WINDOWS, quiet)[1]
    reads: list[str] = []
    inner = model._fill

    def counted(module: Any, prefix: str) -> None:
        reads.append(prefix)
        inner(module, prefix)

    model._fill = counted  # type: ignore[method-assign]
    gradients_at(model, [1], entered, torch.Generator().manual_seed(1), quiet)
    assert len(WINDOWS) > 1
    assert [prefix[-1] for prefix in reads] == ["1", "2", "3", "3", "2", "1"]


def test_a_model_that_is_streamed_is_never_whole(tiny: Any, tmp_path: Path) -> None:
    model = LayeredModel(tiny("llama").source, folder=tmp_path, keep=False)
    with pytest.raises(BuildError, match="too large to be in memory"):
        model.whole()
    with pytest.raises(BuildError, match="split 9 of a model with 4"):
        states_at(model, [9], WINDOWS, quiet)


def test_a_damaged_tensor_is_one_clear_error(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny("llama").source
    whole = source._read

    def broken(stored: Any) -> torch.Tensor:
        values: torch.Tensor = whole(stored)
        return values * torch.nan if "layers.2.mlp" in stored.name else values

    monkeypatch.setattr(source, "_read", broken)
    model = LayeredModel(source, folder=tmp_path, keep=False)
    with pytest.raises(ModelError, match=r"layers\.2\.mlp.*NaN"):
        states_at(model, [4], WINDOWS, quiet)


@pytest.mark.parametrize("vocab_size", [4, 256, 1000])
def test_tokens_are_drawn_as_often_as_they_are_likely(vocab_size: int) -> None:
    """Of weights that need not sum to one, in blocks of the vocabulary that are not all full."""
    likely = torch.tensor([0, 2, vocab_size - 1])
    weights = torch.zeros(vocab_size)
    weights[likely] = torch.tensor([1.0, 0.4, 0.6])
    drawn = drawn_tokens(weights.expand(20_000, -1), torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn[:, 0], minlength=vocab_size) / len(drawn)
    torch.testing.assert_close(counts[likely], weights[likely] / 2, atol=0.015, rtol=0)
    assert counts[weights == 0].sum() == 0


def test_attention_that_is_asked_for_is_not_left_in_the_models_config(tiny: Any) -> None:
    source = tiny("llama").source
    chosen = source.config._attn_implementation
    plain = LayeredModel(source, folder=None, keep=False, attention="eager")
    assert plain.config._attn_implementation == "eager"
    assert source.config._attn_implementation == chosen
    own = LayeredModel(source, folder=None, keep=False)
    assert own.config._attn_implementation != "eager"


def test_released_layers_are_read_again(tiny: Any, tmp_path: Path) -> None:
    model = LayeredModel(tiny("llama").source, folder=tmp_path, keep=True)
    before = states_at(model, [4], WINDOWS, quiet)[4].read(0, 1)
    logits = model.logits(before[0])
    model.release(but_first=1)
    assert list(model._loaded) == [0]
    torch.testing.assert_close(states_at(model, [4], WINDOWS, quiet)[4].read(0, 1), before)
    torch.testing.assert_close(model.logits(before[0]), logits, rtol=0, atol=0)


@pytest.mark.parametrize("on_disk", [True, False])
def test_rows_come_back_as_they_were_written(tmp_path: Path, on_disk: bool) -> None:
    rows = HiddenRows((5, 3, 4), tmp_path if on_disk else None)
    values = torch.randn(5, 3, 4)
    rows.write(2, values[2:])
    rows.write(0, values[:2])
    torch.testing.assert_close(rows.read(0, 5), values, rtol=0, atol=0)
    torch.testing.assert_close(rows.read(3, 4), values[3:4], rtol=0, atol=0)
    rows.read(0, 1).zero_()  # a copy
    torch.testing.assert_close(rows.read(0, 1), values[:1], rtol=0, atol=0)
    rows.close()
    assert not list(tmp_path.iterdir())
