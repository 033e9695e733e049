"""An answer that breaks off in its middle: each client is told in the form that it knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from edge.api.server import ApiConfig
from edge.errors import LostError
from edge.generation.completion import CompletionRun, TextPiece
from tests.conftest import ModelBench
from tests.edge.api.running import running_api
from tests.edge.api.tool_model import tool_client
from tests.end_to_end.servers import RunningServer

GONE = "the link is gone"
MESSAGES: Any = [{"role": "user", "content": "tell me"}]
GREEDY: Any = {"model": "any", "temperature": 0}


@pytest.fixture
def url(bench: ModelBench, server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An API whose answers are lost after two tokens."""
    whole = CompletionRun.__iter__

    def broken(run: CompletionRun) -> Iterator[TextPiece]:
        for index, piece in enumerate(whole(run)):
            if index == 2:
                raise LostError(GONE)
            yield piece

    monkeypatch.setattr(CompletionRun, "__iter__", broken)
    with (
        tool_client(bench, server) as client,
        running_api(client, ApiConfig(port=0)) as base,
    ):
        yield base


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_chats_stream_ends_with_an_error(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(**GREEDY, messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match=GONE):
        list(stream)


def test_a_responses_stream_ends_with_what_came_until_then(client: openai.OpenAI) -> None:
    *_, last = client.responses.create(**GREEDY, input="tell me", stream=True)
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert GONE in last.response.error.message


def test_ollamas_stream_ends_with_an_error(url: str) -> None:
    ollama = pytest.importorskip("ollama", reason="ollama is not installed")
    with ollama.Client(host=url) as made, pytest.raises(ollama.ResponseError, match=GONE):
        list(made.chat(model="any", messages=MESSAGES, stream=True))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/responses", {"input": "tell me"}),
        ("/api/generate", {"prompt": "tell me", "stream": False}),
    ],
)
def test_a_whole_answer_is_a_503(url: str, path: str, body: dict[str, Any]) -> None:
    answer = httpx.post(f"{url}{path}", json={"model": "any", **body})
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert GONE in (error if path.startswith("/api/") else error["message"])
