"""Joules of an answer by hand, how sure they are, and what nobody can know."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.errors import ErrorSpreads
from optimizer.artifacts.plan import Partition
from optimizer.artifacts.prediction import PredictedRange
from optimizer.cost.energy import (
    answer_cost,
    answer_joules,
    lasting_rate,
    measured_watts,
    predicted_cost,
    prompt_busy_s,
)
from optimizer.cost.link import LinkPoint
from optimizer.cost.money import NO_PRICES, Prices
from optimizer.cost.prompt import prompt_chunks
from optimizer.cost.request import predict_request
from optimizer.cost.setting import RequestSetting
from tests.optimizer.cost.test_request import BASE
from tests.optimizer.hot_devices import hot

PROMPT, ANSWER = 300, 50
LENGTHS: Any = {"prompt_tokens": PROMPT, "new_tokens": ANSWER}
METERED = replace(BASE, edge=hot(BASE.edge, share=0.8, watts=9.0, idle=4.0))
WHOLE = replace(
    METERED, partition=Partition(split=BASE.geometry.num_layers, front_bits=4, back_bits=16)
)
PRICES = Prices(cloud_per_hour=2.0, energy_per_kwh=0.3)


def without_errors(device: DeviceProfile, **spreads: float) -> DeviceProfile:
    """Its errors are those of real runs: these, and none of any other kind."""
    known = {"one_row": 0.0, "many_rows": 0.0, "message": 0.0, "memory": 0.0, "power": 0.0}
    return replace(
        device,
        errors=ErrorSpreads(
            source=next(iter(device.sources)), of_runs=True, **{**known, "common": 0.0, **spreads}
        ),
    )


@pytest.mark.parametrize("setting", [METERED, WHOLE])
def test_an_answer_takes_its_watts_computing_and_waiting(setting: RequestSetting) -> None:
    time = predict_request(setting, **LENGTHS)
    found = answer_joules(setting, time, **LENGTHS)
    assert found is not None
    parts = time.round_parts
    busy_s = float(parts.front_s + parts.encode_s) + (parts.sample_s if setting.is_whole else 0.0)
    each = 9.0 * busy_s + 4.0 * (time.tbt_s - busy_s)
    assert found.per_token.p50 == pytest.approx(each, rel=1e-9)
    if not setting.is_whole:
        prompt_s = float(prompt_chunks(setting, num_tokens=PROMPT).edge_s.sum())
        assert prompt_busy_s(setting, num_tokens=PROMPT) == pytest.approx(prompt_s)
        first = 9.0 * prompt_s + 4.0 * (time.ttft_s - prompt_s)
    else:
        first = 9.0 * time.ttft_s  # it never waits
    assert found.first_token.p50 == pytest.approx(first, rel=1e-9)
    assert found.per_answer.p50 == pytest.approx(first + (ANSWER - 1) * each, rel=1e-9)


def test_a_device_that_waits_for_the_server_takes_little_more_than_idle() -> None:
    far = replace(METERED, link=replace(METERED.link, rtt_s=100.0))
    found = answer_joules(far, predict_request(far, **LENGTHS), **LENGTHS)
    assert found is not None
    assert found.per_token.p50 == pytest.approx(4.0 * 100, rel=0.05)


def test_without_a_sensor_nothing_is_predicted() -> None:
    time = predict_request(BASE, **LENGTHS)
    assert BASE.edge.power is not None  # its data sheet states the most that it draws
    assert measured_watts(BASE.edge) is None
    assert answer_joules(BASE, time, **LENGTHS) is None
    only_load = replace(BASE, edge=hot(BASE.edge, share=0.8, watts=9.0))
    assert answer_joules(only_load, time, **LENGTHS) is None
    assert lasting_rate(BASE.edge, PredictedRange(0.1, 0.2, 0.3)) is None
    assert answer_cost(BASE, time, PRICES, **LENGTHS) is None  # energy has a price
    assert answer_cost(BASE, time, Prices(cloud_per_hour=2.0), **LENGTHS) is not None


def test_the_sensors_error_is_all_that_is_left_where_times_are_sure() -> None:
    link = LinkPoint(up_bytes_per_s=2.5e5, down_bytes_per_s=1.25e6, rtt_s=0.05)
    sure = replace(
        METERED,
        link=link,
        edge=without_errors(METERED.edge, power=0.3),
        cloud=without_errors(METERED.cloud),
    )
    found = answer_joules(sure, predict_request(sure, **LENGTHS), **LENGTHS)
    assert found is not None
    for item in found:
        assert (item.p90 - item.p10) / item.p50 == pytest.approx(0.3, rel=1e-6)
    none = replace(sure, edge=without_errors(METERED.edge))
    exact = answer_joules(none, predict_request(none, **LENGTHS), **LENGTHS)
    assert exact is not None
    assert exact.per_answer.p10 == pytest.approx(exact.per_answer.p90)


def test_nine_of_ten_drawn_answers_are_within_p5_and_p95() -> None:
    sure = replace(
        METERED,
        edge=without_errors(METERED.edge, one_row=0.4, power=0.3),
        cloud=without_errors(METERED.cloud, one_row=0.5, many_rows=0.5),
    )
    time = predict_request(sure, **LENGTHS)
    found = answer_joules(sure, time, **LENGTHS)
    assert found is not None
    random, covered = np.random.default_rng(4), 0
    terms = time.tbt_terms
    rest_s = time.tbt_s - terms.edge - terms.cloud
    for _ in range(2000):
        edge, cloud, power = np.exp(
            np.array([_sd(0.4), _sd(0.5), _sd(0.3)]) * random.standard_normal(3)
        )
        busy_s, waits_s = terms.edge * edge, terms.cloud * cloud + rest_s
        covered += found.per_token.covers(float(power * (9.0 * busy_s + 4.0 * waits_s)))
    assert 0.85 <= covered / 2000 <= 0.95


def _sd(spread: float) -> float:
    return math.asinh(spread / 2) / 1.2815515655446004


def test_a_rate_that_lasts_is_the_inverse_and_its_quantiles_turn_round() -> None:
    found = lasting_rate(METERED.edge, PredictedRange(0.1, 0.2, 0.4))
    assert found is not None
    assert found.tokens_per_s == PredictedRange(2.5, 5.0, 10.0)
    assert found.after_s == 160.0  # it fell after 80 s


def test_money_for_a_million_tokens_and_for_an_answer() -> None:
    time = predict_request(METERED, **LENGTHS)
    found = predicted_cost(METERED, time, PRICES, **LENGTHS)
    used = answer_joules(METERED, time, **LENGTHS)
    assert found is not None
    assert used is not None
    assert found.per_answer is not None
    token = time.cloud_s_per_token * 2.0 / 3600 + 9.0 * time.tbt_terms.edge * 0.3 / 3.6e6
    assert found.per_million_tokens.p50 == pytest.approx(1e6 * token)
    answer = time.cloud_s * 2.0 / 3600 + used.per_answer.p50 * 0.3 / 3.6e6
    assert found.per_answer.p50 == pytest.approx(answer)
    assert found.per_answer.p10 < found.per_answer.p50 < found.per_answer.p90
    assert predicted_cost(METERED, time, NO_PRICES, **LENGTHS) is None
