"""The simulator's report in a headless Chromium: on a phone and a desk, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from splitpoint.cli import main
from tests.browser.chromium import DESK, PHONE, Page, Screen, chromium

SCENARIO = Path(__file__).parents[2] / "examples/scenarios/office-lan.yaml"  # groups, long names
SCREENS = pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium() as tab:
        out = tmp_path_factory.mktemp("report")
        arguments = ["--scenario", str(SCENARIO), "--duration", "20", "--out", str(out)]
        arguments += ["--budget-tbt", "0.15", "--budget-ttft", "1.5", "--processes", "1"]
        arguments += ["--sweep", "servers.batch.max_rows=64,512"]
        assert main(["simulate", *arguments]) == 0
        tab.look(DESK)
        tab.open((out / "report.html").as_uri())
        yield tab


def test_it_asks_for_nothing_and_the_console_is_clean(page: Page) -> None:
    assert page.complaints == []
    assert all(address.startswith(("file:", "data:", "about:")) for address in page.requested)


@SCREENS
def test_nothing_is_cut_and_nothing_scrolls_sideways(page: Page, screen: Screen) -> None:
    page.look(screen)
    assert page.run("document.documentElement.scrollWidth") <= screen.width
    beyond = """
    [...document.body.querySelectorAll('*')]
      .filter(e => !e.closest('svg'))
      .filter(e => e.getBoundingClientRect().right > innerWidth + 1
                || (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display != 'inline'))
      .map(e => e.outerHTML.slice(0, 80))
    """
    assert page.run(beyond) == []


@SCREENS
def test_no_word_of_a_picture_leaves_it(page: Page, screen: Screen) -> None:
    page.look(screen)
    beyond = """
    [...document.querySelectorAll('svg text')].filter(t => {
      const inner = t.getBoundingClientRect(), outer = t.closest('svg').getBoundingClientRect();
      return inner.left < outer.left - 1 || inner.right > outer.right + 1
          || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
    }).map(t => t.textContent)
    """
    assert page.run("document.querySelectorAll('svg text').length") > 50
    assert page.run(beyond) == []


@pytest.mark.parametrize("dark", [False, True])
@SCREENS
def test_axe_finds_nothing_serious(page: Page, screen: Screen, dark: bool) -> None:
    page.look(screen, dark=dark)
    assert page.axe_findings() == []
