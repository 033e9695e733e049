"""The server's status page: what it tells, what it never tells, and to whom."""

from __future__ import annotations

import asyncio
import http.client
import json
from dataclasses import replace
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
import typer

from cloud.server.metrics import Metrics
from cloud.server.status.page import STATUS_FILES, StatusApp
from cloud.server.status.readings import CURVES, Reading, between
from cloud.server.status.snapshot import StatusBoard
from cloud.sessions.lifecycle import Lifecycle, SessionEvent, SessionKey
from cloud.sessions.tenants import Tenants
from splitpoint.commands.observation_options import ObservationOptions
from tests.cloud.serving import PROMPT, RawStream, Served, connected, generate, run

SECRET = "0123456789abcdef0123456789abcdef"


class NoStreams:
    """Conversations of a server that nobody uses."""

    def figures_now(self) -> dict[Any, Any]:
        return {}


def board_of(lifecycle: Lifecycle, metrics: Metrics, **changes: Any) -> StatusBoard:
    parts: dict[str, Any] = {
        "metrics": metrics,
        "lifecycle": lifecycle,
        "conversations": NoStreams(),
        "tenants": Tenants(),
        "facts": {"model": "tiny"},
        **changes,
    }
    return StatusBoard(**parts)


def answered(method: str = "GET", path: str = "/", host: str = "localhost", **kind: bool) -> Any:
    """Status, headers and body of one request to an app that serves an empty snapshot."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "HTTP_HOST": host}
    told: list[Any] = []

    def start(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        told.extend((status, dict(headers)))

    app = StatusApp(lambda: {"model": "tiny"}, loopback_only=kind.get("loopback_only", True))
    body = b"".join(app(environ, start))
    return int(told[0].split()[0]), told[1], body


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200
    body = answer.read()
    connection.close()
    return body


def test_it_shows_a_session_and_nothing_of_what_it_says(served: Served) -> None:
    async def scenario() -> None:
        config = replace(served.config, status_port=0)
        async with connected(config) as (server, channel):
            assert server.status is not None
            port = server.status.port
            stream = await RawStream(channel).open(session_id=SECRET)
            await generate(served, stream, PROMPT, 5)
            server.status.board.tick()
            text = (await asyncio.to_thread(get, port, "/status.json")).decode()
            status = json.loads(text)
            (session,) = status["sessions"]
            assert session.pop("age_s") > 0
            assert session == {
                "id": SECRET[:8],
                "tenant": "anonymous",
                "model": "tiny-llama",
                "state": "running",
                "split": 2,
                "max_tokens": 64,
                "kv_tokens": len(PROMPT) + 4,
                "num_frames": 6,
                "num_tokens": 5,
            }
            assert SECRET not in text
            assert status["totals"]["tokens"] == 5
            assert status["kv"]["used"] == server.pool.used_blocks > 0
            assert status["curves"]["tokens_per_s"][0] > 0
            assert b"<script type" in await asyncio.to_thread(get, port, "/")

    run(scenario)


def test_the_curves_hold_an_hour_at_most() -> None:
    now = iter(range(0, 100_000, 5))
    board = board_of(Lifecycle(), Metrics(), every_s=900.0, clock=lambda: float(next(now)))
    for _ in range(10):
        board.tick()
    assert {name: len(board.latest["curves"][name]) for name in CURVES} == dict.fromkeys(CURVES, 4)


def test_a_point_has_rates_means_and_gaps() -> None:
    metrics = Metrics()
    before = Reading.of(metrics.registry, at_s=10.0)
    model = metrics.of_model("tiny")
    model.tokens.inc(30)
    model.step_ran(0.2, num_sessions=3, num_rows=4)
    model.step_ran(0.4, num_sessions=1, num_rows=4)
    point = between(before, Reading.of(metrics.registry, at_s=15.0))
    assert point["tokens_per_s"] == 6.0
    assert point["batch_sessions"] == 2.0
    assert point["tbt_s"] is None


def test_tenants_of_the_file_appear_with_their_limits() -> None:
    lifecycle = Lifecycle()
    life = lifecycle.begin(SessionKey("acme", "one"))
    lifecycle.apply(life, SessionEvent.ADMIT)
    tenants = Tenants.parse(b"t1 name=acme sessions=2\nt2 name=other\n", "file")
    board = board_of(lifecycle, Metrics(), tenants=tenants)
    rows = {row["name"]: (row["sessions"], row["most_sessions"]) for row in board.latest["tenants"]}
    assert rows == {"acme": (1, 2), "other": (0, None)}


def test_a_failed_update_is_not_the_last() -> None:
    lifecycle = Lifecycle()
    board = board_of(lifecycle, Metrics(), every_s=0.001)

    async def scenario() -> None:
        updates = asyncio.create_task(board.run())
        board._lifecycle = None  # type: ignore[assignment]
        await asyncio.sleep(0.02)
        board._lifecycle = lifecycle
        old = board.latest
        while board.latest is old:
            await asyncio.sleep(0.001)
        updates.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_the_files_come_with_a_strict_policy() -> None:
    for path in STATUS_FILES:
        status, headers, body = answered(path=path)
        assert status == 200
        assert body
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in headers["Content-Security-Policy"]


def test_it_changes_nothing_and_serves_nothing_else() -> None:
    assert answered(method="POST")[0] == 405
    assert answered(method="POST")[1]["Allow"] == "GET"
    assert answered(path="/../page.py")[0] == 404
    assert answered(path="/metrics")[0] == 404


def test_on_loopback_it_answers_to_loopback_names_only() -> None:
    for host in ("evil.example", "evil.example:80", "", "[::1"):
        assert answered(host=host, path="/status.json")[0] == 403
    for host in ("localhost:9", "127.0.0.1", "[::1]:80"):
        assert answered(host=host, path="/status.json")[0] == 200
    assert answered(host="inner.example", loopback_only=False)[0] == 200


def test_beyond_loopback_it_must_be_asked_for() -> None:
    everywhere = ObservationOptions(status="0.0.0.0:9091")
    with pytest.raises(typer.BadParameter, match=r"--status .*: there is no password"):
        everywhere.status_address(insecure=False)
    allowed = ObservationOptions(status="0.0.0.0:9091", expose_metrics=True)
    assert allowed.status_address(insecure=False) == ("0.0.0.0", 9091)
    assert ObservationOptions().status_address(insecure=False) is None
