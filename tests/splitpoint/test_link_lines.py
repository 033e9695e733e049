"""Who waits for a lost server reads why, for how long, and how to end it; not once an attempt."""

from __future__ import annotations

import pytest

from edge.generation.link_notice import LinkNotice
from splitpoint.views.link_lines import LinkLines


def test_a_loss_its_attempts_and_the_return_are_told() -> None:
    lines: list[str] = []
    now_s = 0.0
    told = LinkLines(lines.append, clock=lambda: now_s)
    told(LinkNotice("back", "a:1"))  # the first connection: nothing to say
    told(LinkNotice("lost", "a:1", "it \x1b[2J broke", left_s=60))
    for second in range(12):
        now_s = float(second)
        told(LinkNotice("waiting", "a:1", "no server answers at a:1", 1.0, 60 - now_s))
    told(LinkNotice("lost", "a:1", "again"))  # before anything came: no second line
    told(LinkNotice("back", "b:2"))
    assert lines == [
        "\n(a:1 is lost: it \ufffd[2J broke; looking for a server for 60 s, Ctrl-C ends it)",
        "(no server answers at a:1; 55 s left to try, Ctrl-C ends it)",
        "(no server answers at a:1; 50 s left to try, Ctrl-C ends it)",
        "(b:2 answers after 11 s: the answer goes on)",
    ]


def test_only_a_terminal_gets_the_line_end_before(capsys: pytest.CaptureFixture[str]) -> None:
    LinkLines()(LinkNotice("lost", "a:1", "gone", left_s=5))
    assert capsys.readouterr().err.startswith("(a:1 is lost: gone; ")
