"""The line after an answer says what happened, and nothing that would mislead."""

from __future__ import annotations

from typing import Any

import pytest

from edge.generation.report import Completion
from splitpoint.chat.answering import summary


def completion(times_s: tuple[float, ...], **changes: Any) -> Completion:
    values: dict[str, Any] = {
        "text": "",
        "token_ids": tuple(range(len(times_s))),
        "logprobs": (),
        "finish_reason": "stop",
        "finish_detail": "",
        "num_prompt_tokens": 3,
        "hidden_size": 8,
        "token_times_s": times_s,
        "steps": (),
        "reconnects": 0,
        "total_s": 1.0,
    }
    return Completion(**{**values, **changes})


def test_tokens_that_come_together_have_no_time_between_them() -> None:
    assert "TBT 100.0 ms" in summary(completion((0.1, 0.2, 0.3)))
    together = summary(completion((0.1, 0.1, 0.1, 0.4)))
    assert "TBT" not in together
    assert "10.0 tokens/s" in together


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"reconnects": 2}, "reconnected 2x"), ({"moves": 1}, "split moved 1x")],
)
def test_what_went_otherwise_is_said(changes: dict[str, int], said: str) -> None:
    assert said in summary(completion((0.1, 0.2), **changes))
    assert said not in summary(completion((0.1, 0.2)))
