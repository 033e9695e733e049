"""Long work shows stage, share, time taken and time left; off a terminal a line every 10 s."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from splitpoint.views.long_work import Ticker, bytes_of, long_work
from splitpoint.views.work_state import WorkState, duration_text


class FakeClock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_line_has_stage_share_time_taken_and_time_left() -> None:
    clock = FakeClock()
    work = WorkState("building out", clock)
    assert work.line() == "building out, 0 s so far"
    work.stage("front [4 bits]")
    clock.pass_s(30)
    work.share(0.04)
    assert work.line() == "building out: front [4 bits], 4 %, 30 s so far"  # too early to say
    work.share(0.25)
    assert work.line() == "building out: front [4 bits], 25 %, 30 s so far, about 1 min 30 s left"


def test_what_was_there_before_counts_for_the_share_and_not_for_the_rate() -> None:
    clock = FakeClock()
    work = WorkState("building", clock)
    clock.pass_s(1)
    work.share(0.5)  # a build that goes on: half of it was kept
    assert work.left_s is None
    clock.pass_s(10)
    work.share(0.6)
    assert work.left_s == pytest.approx(40)
    work.share(0.3)  # never back
    assert work.done == 0.6


def test_stages_share_the_whole_by_their_costs() -> None:
    work = WorkState("training", FakeClock())
    tell = work.staged({"corpus": 70, "training": 30})
    tell("corpus", 1, 2)
    assert (work.title, work.done) == ("training: corpus (1 of 2)", 0.35)
    tell("another", 1, 1)
    assert (work.title, work.done) == ("training: another", 0.35)
    tell("training", 0, 4)
    assert work.done == 0.7
    work.within(0.7, 0.9)(0.5)
    assert work.done == pytest.approx(0.8)


def test_off_a_terminal_a_line_comes_every_ten_seconds() -> None:
    clock = FakeClock()
    lines: list[str] = []
    work = WorkState("work", clock)
    ticker = Ticker(work, clock, lines.append)
    for second in range(1, 36):
        clock.pass_s(1)
        work.share(second / 50)
        ticker.tick()
        ticker.tick()
    assert [line.split(", ")[1:3] for line in lines] == [
        ["20 %", "10 s so far"],
        ["40 %", "20 s so far"],
        ["60 %", "30 s so far"],
    ]


def test_ctrl_c_says_how_far_it_was_what_was_kept_and_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = FakeClock()

    def work() -> None:
        with long_work("building", kept="x; y", clock=clock) as state:
            clock.pass_s(20)
            state.steps("front", 1, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    line = "building: front, 50 %, 20 s so far, about 20 s left"
    assert capsys.readouterr().err == f"splitpoint: interrupted while {line}: x; y\n"


def test_short_work_says_nothing_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with long_work("short") as work:
        bytes_of(work)(1 << 20, 1 << 21)
        assert work.title == "short: 1 MiB of 2 MiB"
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_with_stage_share_and_times() -> None:
    clock, shown = FakeClock(), io.StringIO()
    screen = Console(file=shown, force_terminal=True, width=100, markup=False)
    with long_work("fetching", clock=clock, screen=screen) as work:
        clock.pass_s(65)
        work.steps("half [of it]", 1, 2)
    text = shown.getvalue()
    assert "fetching: half [of it]" in text
    assert "50 %" in text
    assert "1 min 05 s, about 1 min 05 s left" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3600, "1 h 00 min"), (-1, "0 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
