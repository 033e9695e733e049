"""Links by words: legs that follow each other, figures in the place of a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles.errors import ProfileError
from hwprofiles.links.catalog import load_link
from hwprofiles.links.profile import Quantiles


def test_a_path_over_two_legs_adds_round_trips_and_keeps_the_narrower_rate() -> None:
    wifi, leg, path = load_link("wifi"), load_link("internet"), load_link("wifi+internet")
    assert path.name == "wifi+internet"
    low = wifi.rtt_s.p50 + leg.rtt_s.p05
    assert low < path.rtt_s.p50 < wifi.rtt_s.p95 + leg.rtt_s.p95
    assert path.rtt_s.p05 > wifi.rtt_s.p05 + leg.rtt_s.p05
    # Both at their worst at once is rarer than one in twenty.
    assert path.rtt_s.p95 < wifi.rtt_s.p95 + leg.rtt_s.p95
    assert path.up_bytes_per_s.p50 <= wifi.up_bytes_per_s.p50
    assert wifi.description in path.description
    assert leg.description in path.description


def test_legs_that_do_not_vary_add_up_exactly() -> None:
    path = load_link("rtt=10ms,up=5,down=80+rtt=30ms,up=20,down=40")
    assert path.rtt_s.p05 == path.rtt_s.p50 == path.rtt_s.p95 == pytest.approx(0.04)
    assert path.up_bytes_per_s.p50 == pytest.approx(5 * 125_000)
    assert path.down_bytes_per_s.p50 == pytest.approx(40 * 125_000)
    assert path.outage is None


def test_the_order_of_legs_changes_nothing_but_words() -> None:
    one, other = load_link("5g+ocean"), load_link("ocean+5g")
    for name in ("up_bytes_per_s", "down_bytes_per_s", "rtt_s"):
        first: Quantiles = getattr(one, name)
        second: Quantiles = getattr(other, name)
        assert [first.p05, first.p50, first.p95] == pytest.approx(
            [second.p05, second.p50, second.p95]
        )


def test_outages_of_either_leg_stop_the_path() -> None:
    wifi, cell, path = load_link("wifi"), load_link("5g"), load_link("wifi+5g")
    assert wifi.outage is not None
    assert cell.outage is not None
    assert path.outage is not None
    both = wifi.outage.share_of_time * cell.outage.share_of_time
    total = wifi.outage.share_of_time + cell.outage.share_of_time - both
    assert path.outage.share_of_time == pytest.approx(total)
    durations = sorted([wifi.outage.mean_duration_s, cell.outage.mean_duration_s])
    assert durations[0] < path.outage.mean_duration_s < durations[1]
    assert load_link("wifi+lan").outage == wifi.outage


def test_figures_make_a_link() -> None:
    link = load_link("rtt=40ms, up=10, down=50Mbit")
    assert link.name == "rtt=40ms,up=10,down=50Mbit"
    assert link.rtt_s.p05 == link.rtt_s.p95 == pytest.approx(0.04)
    assert link.up_bytes_per_s.p50 == pytest.approx(1_250_000)
    assert link.down_bytes_per_s.p50 == pytest.approx(6_250_000)
    slow = load_link("rtt=0.3s,up=500kbit,down=1Gbit,jitter=20ms")
    assert (slow.rtt_s.p05, slow.rtt_s.p95) == pytest.approx((0.3, 0.32))
    assert slow.up_bytes_per_s.p50 == pytest.approx(62_500)
    assert slow.down_bytes_per_s.p50 == pytest.approx(125_000_000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rtt=40ms,up=10", "lacks down"),
        ("rtt=40,up=10,down=50", "'40' is no time"),
        ("rtt=-1ms,up=10,down=50", "'-1ms' is no time"),
        ("rtt=nanms,up=10,down=50", "'nanms' is no time"),
        ("rtt=90s,up=10,down=50", "'90s' is no time"),
        ("rtt=40ms,up=0,down=50", "up=0 is no rate"),
        ("rtt=40ms,up=fast,down=50", "up=fast is no rate"),
        ("rtt=40ms,up=10MB,down=50", "up=10MB is no rate"),
        ("rtt=40ms,up=10,down=inf", "down=inf is no rate"),
        ("rtt=40ms,up=10,up=20,down=50", "up is there twice"),
        ("rtt=40ms,loss=1,down=50", "'loss=1' is none of"),
        ("rtt=40ms,,up=10,down=50", "'' is none of"),
        ("wifi+", "no link profile ''"),
        ("wifi+intrenet", "did you mean internet"),
        ("wifi+" + "x" * 400, "no link profile"),
        ("+".join(["lan"] * 9), "9 legs, at most 8"),
    ],
)
def test_what_makes_no_link_is_one_clear_line(text: str, said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_link(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recorded_trace_is_a_whole_path(tmp_path: Path) -> None:
    trace = tmp_path / "drive.csv"
    trace.write_text("t_s,down_mbps,up_mbps,ping_ms\n0,10,5,40\n1,20,8,50\n", encoding="utf-8")
    with pytest.raises(ProfileError, match="'drive' is a recorded trace of a whole path"):
        load_link(f"{trace}+internet")


def test_a_file_may_have_a_plus_in_its_name(tmp_path: Path) -> None:
    trace = tmp_path / "a+b.csv"
    trace.write_text("t_s,down_mbps,up_mbps,ping_ms\n0,10,5,40\n1,20,8,50\n", encoding="utf-8")
    assert load_link(trace).name == "a+b"


def test_a_path_of_legs_can_be_acted_out() -> None:
    shape = load_link("wifi+region").shape(seed=3)
    assert shape.up.rate.values == load_link("wifi+region").shape(seed=3).up.rate.values
    assert min(shape.up.rate.values) == 0.0  # its outages
