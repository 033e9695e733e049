"""The line after an answer says what happened, and nothing that would mislead."""

from __future__ import annotations

from typing import Any

import pytest

from edge.generation.report import Completion
from hwprofiles.sensors.energy import MeasuredEnergy
from splitpoint.chat.answering import summary

ENERGY = MeasuredEnergy(joules=3.0, seconds=0.5, sensor="rapl package-0", covers="processor")


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
    [
        ({"reconnects": 2}, "reconnected 2x"),
        ({"moves": 1}, "split moved 1x"),
        ({"energy": ENERGY}, "1.5 J/token (rapl package-0)"),
    ],
)
def test_what_went_otherwise_is_said(changes: dict[str, Any], said: str) -> None:
    assert said in summary(completion((0.1, 0.2), **changes))
    assert said not in summary(completion((0.1, 0.2)))


def test_the_report_has_the_energy_or_says_that_there_is_none() -> None:
    measured = completion((0.1, 0.2), energy=ENERGY).to_json()
    assert measured["energy_joules"] == 3.0
    assert measured["energy_joules_per_token"] == 1.5
    assert (measured["energy_sensor"], measured["energy_covers"]) == ("rapl package-0", "processor")
    assert completion((), energy=ENERGY).to_json()["energy_joules_per_token"] is None
    unknown = completion((0.1, 0.2)).to_json()
    assert {unknown[name] for name in unknown if name.startswith("energy")} == {None}
