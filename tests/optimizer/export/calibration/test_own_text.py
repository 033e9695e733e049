"""What a model writes to calibrate on begins in many ways; what it shares with earlier rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from codec.levels.recall_model import RecallModel
from codec.session_rows import LONGEST_CONTEXT
from optimizer.export.calibration.recall_fit import fit_recall
from optimizer.export.calibration.text import own_starts, sampled_windows
from tests.tiny_models import VOCAB, make_tiny_model


class Letters:
    """A tokenizer of letters. chat_template: whether it has one."""

    def __init__(self, chat_template: str = "") -> None:
        self.chat_template = chat_template

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]

    def apply_chat_template(self, turns: Any, **options: Any) -> str:
        return f"<user>{turns[0]['content']}<model>"


@pytest.mark.parametrize("template", ["", "some"])
def test_half_of_the_pieces_begin_with_a_random_token(template: str) -> None:
    starts = own_starts(Letters(template))
    assert len(starts) == 60
    assert all(start == [] for start in starts[1::2])
    texts = ["".join(map(chr, start)) for start in starts[::2]]
    assert ("<user>" in texts) == bool(template)
    # Kinds come in turn, so that few windows hold all of them.
    assert texts[:5] == ["def ", "| Name | ", "Le ", "Question: ", "The "]


def test_pieces_begin_as_they_are_told(tmp_path: Any) -> None:
    make_tiny_model("llama", tmp_path)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    options: dict[str, Any] = {"num_windows": 2, "window": 16, "seed": 3, "piece": 8}
    plain = sampled_windows(model, **options)
    told = sampled_windows(model, starts=[[5, 6, 7], []], **options)
    pieces = told.reshape(4, 8)
    assert pieces[::2, :3].tolist() == [[5, 6, 7]] * 2
    assert pieces[1::2, 0].tolist() == plain.reshape(4, 8)[1::2, 0].tolist()
    assert told.max() < VOCAB


def test_shares_are_what_rows_have_in_common_with_earlier_ones() -> None:
    """Rows of a token: 0.5 of the last one's and noise; other tokens share nothing."""
    rng = np.random.default_rng(0)
    window, size = 64, 6
    ids = rng.integers(0, 8, 40 * window)
    rows = np.empty((len(ids), size), dtype=np.float32)
    for begin in range(0, len(ids), window):
        last: dict[int, Any] = {}
        for at in range(begin, begin + window):
            rows[at] = rng.standard_normal(size)
            if ids[at] in last:
                rows[at] = 0.5 * last[ids[at]] + np.sqrt(0.75) * rows[at]
            last[ids[at]] = rows[at]
    usual = np.ones(len(ids), dtype=np.bool_)
    usual[3] = False
    found = fit_recall(rows[usual], usual, ids, window)
    assert found.shares.shape == (LONGEST_CONTEXT, size)
    assert found.shares[0] / 256 == pytest.approx(np.full(size, 0.5), abs=0.08)
    assert found.left[1] == pytest.approx(np.full(size, np.sqrt(0.75)), abs=0.06)
    model = found.model(finest_step=0.25)
    again = RecallModel.of(model.arrays(), size)
    assert again is not None
    assert again.unit == model.unit == 0.25 / 8
    assert np.array_equal(again.shares, model.shares)
    with pytest.raises(Exception, match="hidden size"):
        RecallModel.of(model.arrays(), size + 1)
