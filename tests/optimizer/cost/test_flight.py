"""The closed form of rounds in flight against the product's own loop on a timed cloud."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from edge.draft.base import Guess, Rows
from optimizer.cost.flight import Flight, flight_behind
from optimizer.cost.link import LinkPoint
from optimizer.cost.round_trip import RequestParts
from optimizer.search.drafts import DraftCost, draft_options
from tests.edge.timed_cloud import FRAME_BYTES, RoundSetting, replayed

PROMPT, ANSWER = 8, 400
TEXT = [3 + i * i % 17 for i in range(PROMPT + ANSWER)]


class Coin:
    """Right at a place with the chance a, whenever it is asked about that place."""

    def __init__(self, chance: float, seed: int) -> None:
        drawn = random.Random(seed)
        self._chance = chance
        self._is_right = [drawn.random() < chance for _ in TEXT]
        self._num = 0

    def extend(self, token_ids: Sequence[int], rows: Rows | None) -> None:
        self._num += len(token_ids)

    def rollback(self, num_tokens: int) -> None:
        self._num = num_tokens

    def guesses(self) -> tuple[Guess, ...]:
        if self._num >= len(TEXT):
            return ()
        token_id = TEXT[self._num] + (0 if self._is_right[self._num] else 1)
        return (Guess(token_id, "coin", self._chance),)


def parts_of(setting: RoundSetting, rows: int) -> RequestParts:
    up_s = (FRAME_BYTES + rows * setting.row_bytes) / setting.up_bytes_per_s
    return RequestParts(
        front_s=rows * setting.edge_row_s,
        up_s=setting.rtt_s / 2 + up_s,
        back_s=setting.cloud_step_s + (rows - 1) * setting.cloud_row_s,
        down_s=setting.rtt_s / 2,
    )


def behind(setting: RoundSetting, rows: int, reach: tuple[float, ...]) -> Flight:
    rate = setting.up_bytes_per_s
    link = LinkPoint(rtt_s=setting.rtt_s, up_bytes_per_s=rate, down_bytes_per_s=rate)
    parts = parts_of(setting, rows)
    return flight_behind(parts, link, rows=rows, reach=(reach,), draft_s=0.0, stack_s=0.0)


def predicted_speed_up(setting: RoundSetting, chance: float) -> float:
    """Over plain decoding, by the number of guesses a frame that the planner would take."""
    best = 1.0
    for option in draft_options(DraftCost(kind="coin", chances=(chance,))):
        drafting = option.drafting
        rows = 1 + drafting.num_drafts
        flight = behind(setting, rows, drafting.reach_ahead)
        seconds = float(parts_of(setting, rows).total_s) + np.asarray(flight.seconds).item()
        tokens = drafting.tokens_per_round + np.asarray(flight.tokens).item()
        best = max(best, float(parts_of(setting, 1).total_s) * tokens / seconds)
    return best


@pytest.mark.parametrize("chance", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("rtt_ms", [20, 50, 120])
@pytest.mark.parametrize(("edge_ms", "cloud_ms"), [(2, 4), (4, 10), (9, 1)])
def test_the_predicted_speed_up_is_what_the_loop_takes_within_ten_percent(
    chance: float, rtt_ms: float, edge_ms: float, cloud_ms: float
) -> None:
    setting = RoundSetting(
        rtt_s=rtt_ms / 1e3, edge_row_s=edge_ms / 1e3, cloud_step_s=cloud_ms / 1e3
    )
    plain = replayed(TEXT, PROMPT, None, setting)
    drafted = [replayed(TEXT, PROMPT, Coin(chance, seed), setting) for seed in range(2)]
    measured = plain.seconds * len(drafted) / sum(each.seconds for each in drafted)
    assert predicted_speed_up(setting, chance) == pytest.approx(measured, rel=0.1)


def test_nothing_goes_ahead_where_an_answer_takes_no_longer_than_a_row() -> None:
    found = behind(RoundSetting(rtt_s=1e-3), 1, (0.9, 0.8))
    assert [np.asarray(value).item() for value in (found.tokens, found.seconds)] == [0, 0]
    assert [np.asarray(value).item() for value in (found.wasted_rows, found.hidden_s)] == [0, 0]


def test_guesses_that_hardly_count_are_not_sent_ahead() -> None:
    assert np.asarray(behind(RoundSetting(), 1, (0.03, 0.001)).tokens).item() == 0
    assert np.asarray(behind(RoundSetting(), 1, (0.2, 0.001)).wasted_rows).item() == 1


SETTINGS = (
    RoundSetting(edge_row_s=8e-3),
    RoundSetting(cloud_step_s=9e-3),
    RoundSetting(up_bytes_per_s=2e4),
    RoundSetting(rtt_s=0.3),
)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_terms_of_a_flight_add_up_to_it(setting: RoundSetting) -> None:
    found = behind(setting, 1, tuple(0.8**i for i in range(1, 65)))
    total_s = sum(np.asarray(term).item() for term in found.terms)
    assert total_s == pytest.approx(np.asarray(found.seconds).item())
    assert total_s > 0


def test_a_slow_server_is_what_a_flight_depends_on() -> None:
    found = behind(RoundSetting(cloud_step_s=9e-3), 1, tuple(0.8**i for i in range(1, 65)))
    assert np.asarray(found.terms.cloud).item() == pytest.approx(np.asarray(found.seconds).item())
