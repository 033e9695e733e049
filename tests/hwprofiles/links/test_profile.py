"""Claims about link profiles: what ships, what is refused, and that shapes act them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles.errors import ProfileError
from hwprofiles.links.catalog import link_names, load_link, profile_of_trace
from hwprofiles.links.pipe import Pipe, deliver_all
from hwprofiles.links.profile import LinkProfile, Quantiles


def quantiles(p05: float, p50: float, p95: float) -> Quantiles:
    return Quantiles(p05=p05, p50=p50, p95=p95, source="this test", measured=False)


def test_the_shipped_links_are_those_of_the_design() -> None:
    access = {"3g", "4g", "5g", "adsl", "home-fibre", "lan", "satellite", "wifi"}
    assert set(link_names()) == access | {"metro", "region", "internet", "continent", "ocean"}


@pytest.mark.parametrize("name", link_names())
def test_every_shipped_number_has_a_source_and_says_whether_it_was_measured(name: str) -> None:
    profile = load_link(name)
    assert profile.name == name
    numbers = [profile.up_bytes_per_s, profile.down_bytes_per_s, profile.rtt_s, profile.outage]
    for number in numbers:
        if number is None:
            continue
        assert len(number.source) >= 30
        assert number.measured == number.source.startswith("Computed: ")


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ProfileError, match="no link profile '6g': shipped are 3g, 4g"):
        load_link("6g")


def test_a_wrong_key_names_the_file_and_the_keys_allowed(tmp_path: Path) -> None:
    shipped = Path(load_link.__code__.co_filename).parent / "4g.yaml"
    path = tmp_path / "mine.yaml"
    path.write_text(shipped.read_text().replace("p50:", "median:", 1))
    with pytest.raises(ProfileError, match=r"mine.yaml: unknown key 'up_bytes_per_s.median'; al"):
        load_link(path)


def test_quantiles_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="p05 <= p50 <= p95"):
        quantiles(2.0, 1.0, 3.0)


@pytest.mark.parametrize("name", link_names())
def test_a_shape_acts_out_the_quantiles_of_its_profile(name: str) -> None:
    profile = load_link(name)
    shape = profile.shape(seed=3)
    rates = sorted(v for v in shape.up.rate.values if v > 0)
    for level, want in ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75)):
        low, high = profile.up_bytes_per_s.at(want - 0.04), profile.up_bytes_per_s.at(want + 0.04)
        assert low <= rates[int(level * len(rates))] <= high
    times = [i * 0.09 for i in range(8000)]
    trips = sorted(
        shape.up.delay_s.value(t) + shape.up.extra_delay_s(t) + shape.down.delay_s.value(t)
        for t in times
    )
    for level in (0.3, 0.5, 0.8):
        got = trips[int(level * len(trips))]
        assert profile.rtt_s.at(level - 0.03) <= got <= profile.rtt_s.at(level + 0.03)


def test_outages_take_their_share_of_the_hour_in_both_directions_at_once() -> None:
    profile = load_link("3g")
    assert profile.outage is not None
    shape = profile.shape(seed=1)
    dead = [
        (a, b)
        for a, b, v in zip(
            shape.up.rate.starts_s, (*shape.up.rate.starts_s[1:], 3600.0), shape.up.rate.values,
            strict=True,
        )
        if v == 0
    ]  # fmt: skip
    share = sum(b - a for a, b in dead) / 3600
    assert share == pytest.approx(profile.outage.share_of_time, rel=0.35)  # some 78 outages
    assert all(shape.down.rate.value(a) == 0 for a, _ in dead)


def test_a_steady_shape_is_the_median_link() -> None:
    profile = LinkProfile(
        name="x",
        description="",
        up_bytes_per_s=quantiles(1e3, 1e4, 1e5),
        down_bytes_per_s=quantiles(1e3, 2e4, 1e5),
        rtt_s=quantiles(0.01, 0.1, 0.5),
    )
    shape = profile.steady_shape()
    up = deliver_all(Pipe(shape.up), [(0.0, "a", 1000, "")])
    down = deliver_all(Pipe(shape.down), [(0.0, "a", 1000, "")])
    assert up[0].delivered_s == pytest.approx(0.1 + 0.05, abs=1e-6)
    assert down[0].delivered_s == pytest.approx(0.05 + 0.05, abs=1e-6)
    assert profile.jitter_s(0.5) == pytest.approx(0.09)


def test_a_trace_becomes_a_profile_with_time_weighted_quantiles_and_is_replayed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "drive.csv"
    path.write_text("t_s,down_mbps,up_mbps\n0,8,1\n6,16,2\n9,80,3\n10,8,1\n")  # last row: 3 s
    with pytest.raises(ProfileError, match="no column ping_ms"):
        load_link(path)
    profile = profile_of_trace(path, rtt_s=0.05)
    down = profile.down_bytes_per_s
    assert (down.p05, down.p50, down.p95) == (1e6, 1e6, 1e7)
    assert down.measured
    assert not profile.rtt_s.measured
    assert profile.shape().up.rate.values == (1.25e5, 2.5e5, 3.75e5, 1.25e5)


def test_a_profile_may_name_a_trace_beside_it(tmp_path: Path) -> None:
    (tmp_path / "drive.csv").write_text("t_s,down_mbps\n0,8\n6,16\n")
    shipped = Path(load_link.__code__.co_filename).parent / "lan.yaml"
    (tmp_path / "mine.yaml").write_text(shipped.read_text() + "trace: drive.csv\n")
    shape = load_link(tmp_path / "mine.yaml").shape()
    assert shape.down.rate.values == (1e6, 2e6)
    assert shape.up.rate.mean() == load_link("lan").up_bytes_per_s.p50
