"""The curl commands and the Python blocks of docs/reference/local-api.md, as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.api.server import ApiConfig
from tests.conftest import ModelBench
from tests.edge.api.running import running_api
from tests.edge.api.tool_model import tool_client
from tests.end_to_end.servers import RunningServer

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "local-api.md"
BASE = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, language
    return found


def commands() -> list[str]:
    """Each curl command of the page, with its further lines."""
    text = "".join(blocks("sh"))
    return [command.strip() for command in re.split(r"^(?=curl )", text, flags=re.M) if command]


@pytest.fixture(scope="module")
def url(bench: ModelBench, server: RunningServer) -> Iterator[str]:
    with (
        tool_client(bench, server) as client,
        running_api(client, ApiConfig(port=0, concurrency=2)) as base,
    ):
        yield base


@pytest.mark.parametrize("command", commands(), ids=lambda text: text.split("8000")[1][:20])
def test_a_curl_command_gets_what_it_asks_for(command: str, url: str) -> None:
    assert BASE in command
    ran = subprocess.run(
        ["bash", "-c", command.replace(BASE, url)], capture_output=True, text=True, check=True
    )
    objects = [json.loads(line) for line in lines(ran.stdout)]
    assert objects
    assert not [told for told in objects if told.get("error")], ran.stdout
    assert any(keys_of(told) for told in objects)


def lines(said: str) -> list[str]:
    """The JSON objects of a body or a stream."""
    parts = [line.removeprefix("data: ") for line in said.splitlines() if line]
    return [part for part in parts if part != "[DONE]"]


def keys_of(told: dict[str, Any]) -> set[str]:
    """What makes an object an answer of one of the endpoints."""
    return {"choices", "output", "message", "response", "models"} & set(told)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split()[1])
def test_a_python_block_runs(code: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(code.split()[1], reason="the client is not installed")
    names: dict[str, Any] = {}
    exec(compile(code.replace(BASE, url), str(PAGE), "exec"), names)
    names["client"].close()
    assert capsys.readouterr().out
