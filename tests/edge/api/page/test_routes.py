"""The page's files, the status, and the stream that the page reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge.api.access import ApiAccess
from edge.api.page.routes import PAGE_FILES
from edge.api.server import ApiConfig
from edge.client import EdgeClient
from tests.conftest import ModelBench
from tests.edge.api.running import running_api
from tests.end_to_end.servers import RunningServer

SPLIT = 2


@pytest.fixture(scope="module")
def edge(bench: ModelBench, server: RunningServer) -> Iterator[EdgeClient]:
    with EdgeClient(bench.chat_bundle(SPLIT), server.address) as client:
        yield client


@pytest.fixture(scope="module")
def url(edge: EdgeClient) -> Iterator[str]:
    with running_api(edge, ApiConfig(port=0)) as base:
        yield base


def chunks_of(url: str, **options: bool) -> list[dict[str, Any]]:
    body = {
        "model": httpx.get(f"{url}/v1/models").json()["data"][0]["id"],
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 5,
        "temperature": 0,
        "stream": True,
        "stream_options": options,
    }
    lines = httpx.post(f"{url}/v1/chat/completions", json=body).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_every_file_is_served_under_a_strict_policy(url: str) -> None:
    for path in ("/", *(f"/page/{name}" for name in PAGE_FILES)):
        answer = httpx.get(url + path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy


def test_the_served_files_are_those_of_the_folder() -> None:
    static = files("edge.api.page") / "static"
    assert {entry.name for entry in static.iterdir()} == set(PAGE_FILES)


def test_no_file_asks_anybody_else_for_something() -> None:
    static = files("edge.api.page") / "static"
    for name in PAGE_FILES:
        text = (static / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        for unwanted in ("innerHTML", "insertAdjacentHTML", 'src="http', "url(", "@import"):
            assert unwanted not in text, name


def test_nothing_beside_the_files_is_served(url: str) -> None:
    assert httpx.get(f"{url}/page/routes.py").status_code == 404
    assert httpx.get(f"{url}/page/..%2Froutes.py").status_code == 404


def test_the_status_says_which_side_does_what(url: str, edge: EdgeClient) -> None:
    status = httpx.get(f"{url}/v1/splitpoint/status").json()
    assert (status["split"], status["num_layers"]) == (SPLIT, 4)
    assert status["max_tokens"] == edge.plan.max_tokens
    assert status["levels"] == ["auto", "lossless"]
    assert status["drafters"] == ["auto", "off", "ngram", "cloud"]  # no head and no model here
    assert status["running"] == 0


def test_a_stream_tells_its_figures_to_those_who_ask(url: str) -> None:
    chunks = chunks_of(url, include_splitpoint=True)
    steps = [step for chunk in chunks for step in chunk["splitpoint"]["steps"]]
    times_s = [at_s for chunk in chunks for at_s in chunk["splitpoint"]["token_times_s"]]
    assert [step["sequence"] for step in steps] == list(range(len(steps)))
    assert sum(step["num_new_tokens"] for step in steps) >= len(times_s) == 5
    assert times_s == sorted(times_s)
    assert steps[0]["uplink_bytes"] > 0


def test_a_stream_says_nothing_of_ours_to_others(url: str) -> None:
    assert all("splitpoint" not in chunk for chunk in chunks_of(url))


def test_the_page_needs_no_key_and_the_status_does(edge: EdgeClient, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("open-sesame\n")
    with running_api(edge, ApiConfig(port=0, access=ApiAccess(key_file=keys))) as base:
        assert httpx.get(f"{base}/").status_code == 200
        assert httpx.get(f"{base}/v1/splitpoint/status").status_code == 401
        right = {"Authorization": "Bearer open-sesame"}
        assert httpx.get(f"{base}/v1/splitpoint/status", headers=right).status_code == 200


def test_without_a_key_the_page_too_goes_to_loopback_names_only(url: str) -> None:
    assert httpx.get(f"{url}/", headers={"Host": "evil.example"}).status_code == 403
