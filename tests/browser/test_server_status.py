"""The server's status page in a headless Chromium, while a client generates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cloud.server.process import ServerConfig
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from tests.browser.chromium import DESK, PHONE, Page, Screen, chromium
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer


@contextmanager
def _begun(client: EdgeClient) -> Iterator[None]:
    """A session that is under way for as long as the block lasts."""
    answer = client.start("hello")
    pieces = iter(answer)
    next(pieces)
    yield
    answer.cancel()
    list(pieces)


@pytest.fixture(scope="module")
def watched(bench: ModelBench) -> Iterator[RunningServer]:
    """A server with a status page that has served one answer and serves another."""
    config = ServerConfig(
        bundle=bench.cloud_bundle(), port=0, kv_memory_bytes=1 << 26, status_port=0
    )
    server = RunningServer(config)
    server.start()
    try:
        with EdgeClient(bench.edge_bundle(2), server.address) as client:
            client.complete("hello", CompletionRequest(max_new_tokens=9))
            with _begun(client):
                assert server.server.status is not None
                server.server.status.board.tick()
                yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def page(watched: RunningServer) -> Iterator[Page]:
    with chromium() as tab:
        tab.look(DESK)
        assert watched.server.status is not None
        tab.open(f"http://127.0.0.1:{watched.server.status.port}/")
        tab.until("document.querySelectorAll('figure').length > 5")
        yield tab


def test_it_shows_what_was_served_and_the_console_is_clean(page: Page) -> None:
    shown = page.run("document.body.innerText")
    assert "anonymous\trunning" in shown
    assert "Sessions opened\t2" in shown
    assert page.run("document.querySelector('figure svg').getAttribute('aria-label')").startswith(
        "Tokens a second: now "
    )
    assert page.complaints == []
    here = page.run("location.origin")
    assert all(address.startswith((here, "about:")) for address in page.requested)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_serious(page: Page, screen: Screen, dark: bool) -> None:
    page.look(screen, dark=dark)
    assert page.axe_findings() == []


@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_is_wider_than_the_screen(page: Page, screen: Screen) -> None:
    page.look(screen)
    assert page.run("document.documentElement.scrollWidth") <= screen.width
