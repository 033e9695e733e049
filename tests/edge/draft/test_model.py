"""A small model as a drafter: it follows the sequence through rollbacks, a chunk at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.draft.model import ModelDrafter
from tests.edge.fakes import VOCAB, FakeFront, expected_tokens, token_of

PROMPT = [3, 1, 4, 1, 5]


class SmallModel(FakeFront):
    """Gives logits [1, V] in which the expected token has the probability asked for."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.calls: list[int] = []
        self._logit = float(np.log(sure / (1.0 - sure) * (VOCAB - 1)))

    def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        self.calls.append(len(token_ids))
        super().forward(token_ids)
        logits = np.zeros((1, VOCAB), dtype=np.float32)
        logits[0, token_of(self.cache[-1])] = self._logit
        return logits


def drafter(sure: float = 0.75, max_tokens: int = 100) -> tuple[ModelDrafter, SmallModel]:
    engine: Any = SmallModel(sure)
    return ModelDrafter(engine, max_tokens=max_tokens, chunk_tokens=2, vocab_size=VOCAB), engine


def test_the_likeliest_token_is_guessed_with_its_probability_in_tenths() -> None:
    made, engine = drafter()
    made.extend(PROMPT, None)
    (guess,) = made.guesses()
    assert guess.token_id == expected_tokens(PROMPT, 1)[0]
    assert guess.kind == "model-7"
    assert guess.prior == pytest.approx(0.75)
    assert engine.calls == [2, 2, 1]


def test_nothing_is_computed_until_a_guess_is_asked_for() -> None:
    made, engine = drafter()
    assert made.guesses() == ()
    made.extend(PROMPT, None)
    assert engine.calls == []


def test_tokens_that_were_taken_back_are_forgotten() -> None:
    made, _ = drafter()
    made.extend(PROMPT, None)
    made.guesses()
    made.extend([9, 9], None)
    made.rollback(len(PROMPT) + 1)  # one of the two, not computed yet
    made.rollback(len(PROMPT) - 2)  # and two that were
    made.extend([8], None)
    (guess,) = made.guesses()
    assert guess.token_id == expected_tokens([*PROMPT[:-2], 8], 1)[0]


def test_a_sequence_longer_than_the_models_plan_has_no_guess() -> None:
    made, engine = drafter(max_tokens=4)
    made.extend(PROMPT, None)
    assert made.guesses() == ()
    assert engine.calls == []


def test_a_token_that_only_the_large_model_has_ends_the_guessing() -> None:
    made, engine = drafter()
    made.extend([*PROMPT, VOCAB], None)
    assert made.guesses() == ()
    assert engine.calls == []
    made.rollback(len(PROMPT))
    assert len(made.guesses()) == 1
