"""The page on the device in a headless Chromium, with a real server of a tiny model behind it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.api.access import ApiAccess
from edge.api.server import ApiConfig
from edge.api.stream import RunningAnswer
from edge.client import EdgeClient
from tests.browser.chromium import DESK, PHONE, Page, Screen, chromium
from tests.conftest import ModelBench
from tests.edge.api.running import running_api
from tests.end_to_end.servers import RunningServer

SPLIT = 2
TOKEN_S = 0.1  # slow enough for a person to stop it
IDLE = "!document.getElementById('send').disabled && !!document.querySelector('#sides dt')"
LAST = "[...document.querySelectorAll('.message.assistant .body')].at(-1)"
# As the page itself would make an answer of it, without a server.
SHOW = "import('/page/markdown.js').then(m => {{ {LAST}.replaceChildren(...m.blocks({text})); }})"


@pytest.fixture(scope="module")
def edge(bench: ModelBench, server: RunningServer) -> Iterator[EdgeClient]:
    """A client whose answers never end by themselves: the page draws tokens without a seed."""
    with EdgeClient(bench.chat_bundle(SPLIT), server.address) as client:
        client._settings = replace(client._settings, stop_token_ids=())
        yield client


@pytest.fixture(scope="module")
def url(edge: EdgeClient) -> Iterator[str]:
    with running_api(edge, ApiConfig(port=0)) as base:
        yield base


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser: Page, url: str) -> Page:
    """The page as a new person sees it."""
    browser.look(DESK)
    browser.open(f"{url}/")
    browser.run("localStorage.clear(); sessionStorage.clear()")
    browser.complaints.clear()
    browser.requested.clear()
    browser.open(f"{url}/")
    browser.until(IDLE)
    return browser


def set_most_tokens(page: Page, count: int) -> None:
    page.click("#open-settings")
    page.run(f"document.getElementById('max_tokens').value = '{count}'")
    page.click("#settings-form .main-button")


def say(page: Page, text: str) -> None:
    page.run("document.getElementById('prompt').focus()")
    page.type(text)
    page.press("Enter")
    page.until("document.querySelectorAll('.message.assistant').length > 0")


def test_enter_sends_and_the_answer_and_its_figures_appear(page: Page, url: str) -> None:
    set_most_tokens(page, 12)
    say(page, "hello")
    page.until(IDLE)
    page.until("/12/.test(document.getElementById('strip').innerText)")
    strip = page.run("document.getElementById('strip').innerText")
    for words in ("tokens a second", "Front, on this device", "Compute, on the server", "KV cache"):
        assert words in strip
    assert "12 tokens in" in page.run(
        "document.querySelector('#timeline svg').getAttribute('aria-label')"
    )
    assert page.run("document.querySelectorAll('#timeline tbody tr').length") >= 1
    assert page.complaints == []
    assert all(address.startswith((url, "about:")) for address in page.requested)


def test_shift_enter_makes_a_line_and_sends_nothing(page: Page) -> None:
    page.run("document.getElementById('prompt').focus()")
    page.type("one")
    page.press("Enter", shift=True)
    page.type("two")
    assert page.run("document.getElementById('prompt').value") == "one\ntwo"
    assert page.run("document.querySelectorAll('.message').length") == 0


def test_escape_stops_the_answer_and_keeps_what_had_come(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = RunningAnswer._tell

    def tell_slowly(answer: RunningAnswer, item: Any) -> None:
        time.sleep(TOKEN_S)
        tell(answer, item)

    monkeypatch.setattr(RunningAnswer, "_tell", tell_slowly)
    say(page, "a long one")
    page.until("/tokens a second/.test(document.getElementById('strip').innerText)")
    page.press("Escape")
    page.until(IDLE)
    page.until(f"{LAST}.innerText.endsWith('Stopped.')")
    assert page.complaints == []


def test_regenerate_replaces_the_answer(page: Page) -> None:
    set_most_tokens(page, 4)
    say(page, "again")
    page.until(IDLE)
    page.click("#regenerate")
    page.until("document.getElementById('send').disabled")
    page.until(IDLE)
    assert page.run("document.querySelectorAll('.message').length") == 2


def test_conversations_outlive_the_page(page: Page, url: str) -> None:
    set_most_tokens(page, 4)
    say(page, "the first")
    page.until(IDLE)
    page.click("#new-conversation")
    say(page, "the second")
    page.until(IDLE)
    page.open(f"{url}/?again")
    page.until(IDLE)
    titles = page.run("[...document.querySelectorAll('nav .open')].map(one => one.innerText)")
    assert titles == ["the second", "the first"]
    assert page.run("document.querySelector('.message.user .body').innerText") == "the second"


def test_a_models_words_are_never_markup(page: Page) -> None:
    set_most_tokens(page, 2)
    say(page, "<img src=x onerror=alert(1)>")
    page.until(IDLE)
    evil = (
        "# A <b>title</b>\n<script>window.hurt = 1</script>\n- *one* **two** `<i>`\n"
        "[no](javascript:alert(1)) [yes](https://example.org/)\n```html\n<img src=x onerror=x>\n"
    )
    page.run(SHOW.format(LAST=LAST, text=json.dumps(evil)))
    assert page.run("document.querySelectorAll('#log img, #log script, #log b').length") == 0
    assert page.run("window.hurt === undefined")
    assert page.run("[...document.querySelectorAll('#log a')].map(a => a.href)") == [
        "https://example.org/"
    ]
    assert page.run(f"{LAST}.querySelector('pre').innerText") == "<img src=x onerror=x>\n"
    assert page.complaints == []


def test_the_first_tab_stop_skips_to_the_message(page: Page) -> None:
    page.run("document.querySelector('a, button, input, textarea').focus()")
    assert page.run("document.activeElement.className") == "skip"
    assert page.run("document.activeElement.getBoundingClientRect().left") >= 0
    page.press("Enter")
    page.until("document.activeElement.id === 'prompt'")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_serious(page: Page, screen: Screen, dark: bool) -> None:
    set_most_tokens(page, 8)
    say(page, "hello")
    page.until(IDLE)
    page.look(screen, dark=dark)
    assert page.axe_findings() == []
    page.click("#open-settings")
    assert page.axe_findings() == []


@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_is_wider_than_the_screen(page: Page, screen: Screen) -> None:
    page.look(screen)
    assert page.run("document.documentElement.scrollWidth") <= screen.width


def test_a_key_is_asked_for_once_and_kept_for_the_tab(
    browser: Page, edge: EdgeClient, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("open-sesame\n")
    with running_api(edge, ApiConfig(port=0, access=ApiAccess(key_file=keys))) as base:
        browser.open(f"{base}/")
        browser.until("document.getElementById('ask-key').open")
        browser.run("document.getElementById('key').value = 'open-sesame'")
        browser.click("#key-form button")
        browser.until(IDLE)
        browser.open(f"{base}/?again")
        browser.until(IDLE)
        assert not browser.run("document.getElementById('ask-key').open")
        assert browser.run("localStorage.getItem('splitpoint.key')") is None
