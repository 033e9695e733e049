"""A headless Chromium, driven over its DevTools protocol. Tests skip where there is none."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_S: Final = 60.0
WAIT_S: Final = 60.0
LOOK_S: Final = 0.05
# axe-core is no part of this repository. `npm pack axe-core` fetches it; this names its axe.min.js.
AXE_VARIABLE: Final = "AXE_CORE_JS"


class Screen(NamedTuple):
    """A screen in CSS pixels."""

    width: int
    height: int


DESK: Final = Screen(1360, 820)
PHONE: Final = Screen(390, 844)


class Page:
    """One tab. It collects what the console and the network say while the tests act in it."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._num_calls = 0
        self.complaints: list[str] = []  # errors and warnings of the console, uncaught exceptions
        self.requested: list[str] = []  # addresses
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol and its result."""
        self._num_calls += 1
        self._socket.send(
            json.dumps({"id": self._num_calls, "method": method, "params": parameters})
        )
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_S))
            if message.get("id") == self._num_calls:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def open(self, url: str) -> None:
        """Go there, and wait until the document is ready."""
        self.call("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href.startsWith({url!r})")

    def run(self, script: str) -> Any:
        """What a script gives; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a script's expression is true."""
        deadline_s = time.monotonic() + WAIT_S
        while not self.run(condition):
            if time.monotonic() > deadline_s:
                raise AssertionError(f"did not come true: {condition}")
            time.sleep(LOOK_S)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key, such as Enter, Escape or Tab."""
        code = {"Enter": 13, "Escape": 27, "Tab": 9}[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        down = {"type": "keyDown", "text": "\r"} if key == "Enter" else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **down, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({selector!r}).click()")

    def look(self, screen: Screen, *, dark: bool = False) -> None:
        """A screen of this size, and the colours that the person prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=screen.width,
            height=screen.height,
            deviceScaleFactor=1,
            mobile=screen is PHONE,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> bytes:
        """A PNG of what can be seen."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def axe_findings(self) -> list[str]:
        """Serious and critical findings of axe-core: rule and the first element."""
        script = os.environ.get(AXE_VARIABLE)
        if script is None:
            pytest.skip(f"axe-core is not here: {AXE_VARIABLE} names its axe.min.js")
        self.run(Path(script).read_text(encoding="utf-8") + "; true")
        found = self.run("axe.run().then(r => JSON.stringify(r.violations))")
        return [
            f"{one['id']}: {one['nodes'][0]['html']} {one['nodes'][0].get('failureSummary')}"
            for one in json.loads(found)
            if one["impact"] in ("serious", "critical")
        ]

    def _note(self, message: dict[str, Any]) -> None:
        method, told = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.complaints.append(str(told["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])


@contextmanager
def chromium() -> Iterator[Page]:
    """A tab of a fresh browser; skips the test where the machine has no Chromium."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    client = pytest.importorskip("websockets.sync.client")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with client.connect(_tab_address(Path(profile)), max_size=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(30)


def _tab_address(profile: Path) -> str:
    """The address of the first tab's socket, once the browser has said where it listens."""
    import httpx

    told = profile / "DevToolsActivePort"
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        if told.exists() and (lines := told.read_text().splitlines()):
            with httpx.Client(trust_env=False) as http:
                tabs = http.get(f"http://127.0.0.1:{lines[0]}/json/list").json()
            pages = [tab for tab in tabs if tab["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(LOOK_S)
    raise RuntimeError(f"Chromium did not start within {START_S:g} s")
