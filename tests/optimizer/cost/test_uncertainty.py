"""Intervals: the formula's coverage on drawn errors, and which errors a prediction has."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.errors import Z90, ErrorSpreads, sd_of_spread, spread_of_sd
from optimizer.artifacts.plan import Partition
from optimizer.artifacts.prediction import PredictedRange
from optimizer.artifacts.specs import load_spec
from optimizer.cost.codec import LevelCost
from optimizer.cost.link import LinkPoint, link_at
from optimizer.cost.prompt import prompt_chunks
from optimizer.cost.request import predict_request, time_ranges
from optimizer.cost.round_trip import prompt_stages_s
from optimizer.cost.setting import RequestSetting
from optimizer.cost.uncertainty import (
    AVERAGED,
    FORMULA,
    FROM_DATA_SHEET,
    NOISE,
    TermErrors,
    Terms,
    error_of_kind,
    range_of,
    term_errors,
)

EDGE = load_device("local-epyc-2core")
CLOUD = load_device("local-epyc-2core-cloud")
SHEET = load_device("jetson-orin-nano-8gb")
GEOMETRY = load_spec("smollm2-135m").geometry
DRAWS = 4000


def setting(split: int = 10, link: str = "5g", chunk: int = 32) -> RequestSetting:
    return RequestSetting(
        edge=EDGE,
        cloud=CLOUD,
        link=link_at(load_link(link), epsilon=0.5),
        geometry=GEOMETRY,
        partition=Partition(split=split, front_bits=4, back_bits=8),
        kv_bits=8,
        level=LevelCost(name="lossless", bits_per_element=24.0),
        chunk=chunk,
    )


def known(device: DeviceProfile, **spreads: float | bool) -> DeviceProfile:
    """The device with errors of its own."""
    source = next(iter(device.sources))
    errors = ErrorSpreads(source=source, **spreads)  # type: ignore[arg-type]
    return dataclasses.replace(device, errors=errors)


def sigma(errors: TermErrors, terms: Terms, total: float) -> float:
    """Standard deviation of the logarithm, on the upper side."""
    return float(np.log(errors.factor(0.9, terms, total)) / Z90)


@pytest.mark.parametrize("split", [0, 5, 10, 29, 30])
@pytest.mark.parametrize("link", ["lan", "wifi", "4g"])
def test_nine_of_ten_drawn_rounds_lie_within_p5_and_p95(split: int, link: str) -> None:
    asked = setting(split, link)
    time = predict_request(asked, prompt_tokens=128, new_tokens=24)
    errors = term_errors(asked.edge, asked.cloud, asked.link, kind="one_row")
    found = time_ranges(asked, time).tbt
    drawn = _drawn(time.tbt_terms, errors, seed=split)
    assert 0.85 <= np.mean([found.covers(value) for value in drawn]) <= 0.95
    assert np.mean(drawn <= found.p10) == pytest.approx(0.1, abs=0.05)
    assert np.mean(drawn <= found.p90) == pytest.approx(0.9, abs=0.05)


def _drawn(terms: Terms, errors: TermErrors, *, seed: int) -> np.ndarray:
    """Sums of terms that are each off by a factor of their own, and all by a common one."""
    rng = np.random.default_rng(seed)
    own = [errors.edge, errors.cloud, errors.round_trip, errors.transfer, errors.stack]
    factors = np.exp(rng.standard_normal((DRAWS, 5)) * own)
    common = np.exp(rng.standard_normal(DRAWS) * errors.common)
    return np.asarray(common * (factors @ np.array([float(term) for term in terms])))


@pytest.mark.parametrize(("split", "link"), [(3, "4g"), (10, "wifi"), (20, "5g"), (29, "lan")])
def test_nine_of_ten_drawn_prompts_lie_within_p5_and_p95(split: int, link: str) -> None:
    """The whole pipeline is run with every draw, so this holds the derivatives to account."""
    asked = setting(split, link)
    time = predict_request(asked, prompt_tokens=300, new_tokens=2)
    errors = term_errors(asked.edge, asked.cloud, asked.link, kind="many_rows")
    chunks = prompt_chunks(asked, num_tokens=300)
    beside = time.ttft_s - float(prompt_stages_s(chunks, asked.link, connected_s=0.0))
    rng = np.random.default_rng(split)
    drawn = []
    for _ in range(800):
        edge, cloud, trip, bytes_, common = np.exp(
            rng.standard_normal(5)
            * [errors.edge, errors.cloud, errors.round_trip, errors.transfer, errors.common]
        )
        moved = dataclasses.replace(
            chunks,
            edge_s=chunks.edge_s * edge,
            cloud_s=chunks.cloud_s * cloud,
            frame_bytes=chunks.frame_bytes * bytes_,
        )
        stages = float(prompt_stages_s(moved, asked.link, connected_s=0.0))
        drawn.append(common * (stages + beside + (trip - 1) * asked.link.rtt_s))
    found = time_ranges(asked, time).ttft
    assert 0.85 <= np.mean([found.covers(value) for value in drawn]) <= 0.96


def test_terms_add_up_to_the_prediction() -> None:
    for split in (0, 10, 30):
        time = predict_request(setting(split), prompt_tokens=128, new_tokens=24)
        assert sum(map(float, time.tbt_terms)) == pytest.approx(time.tbt_s)
        assert max(map(float, time.ttft_terms)) <= time.ttft_s


def test_a_whole_edge_depends_on_itself_alone() -> None:
    terms = predict_request(setting(30), prompt_tokens=128, new_tokens=24).tbt_terms
    assert terms.edge > 0
    assert [float(term) for term in terms[1:]] == [0.0] * 4


def test_independent_errors_of_equal_terms_shrink_and_a_common_one_does_not() -> None:
    alone = TermErrors(edge=0.1, cloud=0.1, round_trip=0, transfer=0, stack=0, common=0.0)
    half = Terms(edge=1.0, cloud=1.0)
    assert sigma(alone, half, 2.0) == pytest.approx(0.1 / 2**0.5, rel=0.05)
    common = dataclasses.replace(alone, edge=0.0, cloud=0.0, common=0.1)
    assert sigma(common, half, 2.0) == pytest.approx(0.1)


def test_one_term_that_is_off_by_much_is_exact() -> None:
    errors = TermErrors(edge=0.0, cloud=0.0, round_trip=0.9, transfer=0, stack=0, common=0.0)
    terms = Terms(edge=3.0, round_trip=1.0)
    for z, quantile in ((-Z90, 0.1), (Z90, 0.9)):
        factor = float(errors.factor(quantile, terms, 4.0))
        assert factor == pytest.approx((3 + np.exp(0.9 * z)) / 4)


def test_a_profile_without_errors_has_the_stated_ones() -> None:
    old = dataclasses.replace(EDGE, errors=None)
    assert error_of_kind(old, "one_row") == pytest.approx(
        math.hypot(FORMULA["one_row"], AVERAGED * NOISE["one_row"])
    )
    assert error_of_kind(SHEET, "one_row") >= FROM_DATA_SHEET["one_row"]


def test_errors_of_runs_hold_all_and_those_of_repeats_do_not() -> None:
    spread = spread_of_sd(0.06)
    assert error_of_kind(known(EDGE, one_row=spread, of_runs=True), "one_row") == pytest.approx(
        0.06
    )
    repeats = error_of_kind(known(EDGE, one_row=spread), "one_row")
    assert repeats == pytest.approx(math.hypot(0.06 * AVERAGED, FORMULA["one_row"]))


def test_a_spread_and_its_standard_deviation_are_one_thing() -> None:
    rng = np.random.default_rng(0)
    values = np.exp(0.2 * rng.standard_normal(100_000))
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    assert sd_of_spread((high - low) / middle) == pytest.approx(0.2, rel=0.02)


def test_a_range_gives_back_any_quantile() -> None:
    found = range_of(2.0, 0.1)
    assert found.at(0.9) == pytest.approx(found.p90)
    assert found.at(0.1) == pytest.approx(found.p10)
    assert found.p50 == 2.0
    assert found.covers(2.0 * np.exp(1.6 * 0.1))
    assert not found.covers(2.0 * np.exp(1.7 * 0.1))
    assert not PredictedRange(1.0, 1.0, 1.0).covers(1.01)


def test_a_link_varies_at_its_median_and_is_fixed_where_somebody_chose_its_state() -> None:
    profile = load_link("4g")
    varying = link_at(profile, epsilon=0.5)
    assert varying.rtt_sd == pytest.approx(np.log(0.1016 / 0.066) / (2 * 1.6449), rel=1e-3)
    assert varying.rate_sd > 0
    chosen = link_at(profile, epsilon=0.05)
    assert (chosen.rtt_sd, chosen.rate_sd) == (0.0, 0.0)
    assert LinkPoint(up_bytes_per_s=1, down_bytes_per_s=1, rtt_s=1).rtt_sd == 0.0
