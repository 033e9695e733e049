"""Ollama's routes with its official client: chat, generate, tools, formats, and bad bodies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge.api.asked import ApiRequest
from edge.api.errors import ApiError
from edge.api.ollama.request import ollama_chat, ollama_generate
from edge.api.server import ApiConfig
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from optimizer.artifacts.manifest import write_manifest
from tests.conftest import ModelBench
from tests.edge.api.running import running_api
from tests.edge.api.tool_model import SPLIT, TOOL
from tests.end_to_end.servers import RunningServer

MESSAGES: Any = [{"role": "user", "content": "tell me"}]
GREEDY: Any = {"temperature": 0, "num_predict": 9}
COLOR_SCHEMA = TOOL["function"]["parameters"]


@pytest.fixture(scope="module")
def ollama() -> Any:
    return pytest.importorskip("ollama", reason="ollama is not installed")


@pytest.fixture(scope="module")
def client(ollama: Any, url: str) -> Iterator[Any]:
    with ollama.Client(host=url) as made:
        yield made


def test_a_chat_answers_what_the_edge_client_answers(client: Any, edge: EdgeClient) -> None:
    expected = edge.complete(MESSAGES, CompletionRequest(max_new_tokens=9))
    answer = client.chat(model="any", messages=MESSAGES, options=GREEDY)
    assert answer.message.content == expected.text
    assert answer.message.role == "assistant"
    assert answer.model == edge.plan.model.id
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "length", 9)
    assert answer.prompt_eval_count == expected.num_prompt_tokens
    assert answer.total_duration >= answer.prompt_eval_duration > 0


def test_a_stream_brings_the_same_text_and_its_figures(client: Any) -> None:
    whole = client.chat(model="any", messages=MESSAGES, options=GREEDY)
    parts = list(client.chat(model="any", messages=MESSAGES, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == 9


def test_generate_takes_the_template_and_raw_does_not(client: Any, edge: EdgeClient) -> None:
    request = CompletionRequest(max_new_tokens=9)
    turns: Any = [{"role": "system", "content": "be brief"}, *MESSAGES]
    told = client.generate(model="any", prompt="tell me", system="be brief", options=GREEDY)
    assert told.response == edge.complete(turns, request).text
    raw = client.generate(model="any", prompt="tell me", raw=True, options=GREEDY)
    assert raw.response == edge.complete("tell me", request).text
    parts = client.generate(model="any", prompt="tell me", raw=True, options=GREEDY, stream=True)
    assert "".join(part.response for part in parts) == raw.response


def test_a_model_without_a_template_generates_from_the_prompt(
    bench: ModelBench, server: RunningServer, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bench.edge_bundle(SPLIT), bundle)
    (bundle / "edge" / "chat_template.jinja").unlink()
    write_manifest(bundle)
    body = {"model": "any", "prompt": "tell me", "stream": False, "options": GREEDY}
    with (
        EdgeClient(bundle, server.address) as plain,
        running_api(plain, ApiConfig(port=0)) as base,
    ):
        expected = plain.complete("tell me", CompletionRequest(max_new_tokens=9))
        answer = httpx.post(f"{base}/api/generate", json=body).json()
        assert answer["response"] == expected.text
        refused = httpx.post(f"{base}/api/generate", json={**body, "system": "be brief"})
    assert refused.status_code == 400


def test_a_seed_makes_an_answer_repeatable(client: Any) -> None:
    def ask(seed: int) -> str:
        options = {"num_predict": 12, "seed": seed}
        text: str = client.generate(model="any", prompt="tell me", options=options).response
        return text

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_a_stop_text_ends_the_answer_before_it(client: Any) -> None:
    text = client.generate(model="any", prompt="tell me", options=GREEDY).response
    stop = text[len(text) // 2 :][:2]
    options = {**GREEDY, "stop": [stop]}
    stopped = client.generate(model="any", prompt="tell me", options=options)
    assert stopped.done_reason == "stop"
    assert stopped.response == text[: text.find(stop)]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_follows_a_schema(client: Any, stream: bool) -> None:
    options = {"num_predict": 90, "seed": 1}
    answer = client.chat(
        model="any", messages=MESSAGES, format=COLOR_SCHEMA, options=options, stream=stream
    )
    parts = list(answer) if stream else [answer]
    text = "".join(part.message.content for part in parts)
    assert json.loads(text)["color"] in ("red", "blue")
    free = client.generate(model="any", prompt="tell me", format="json", options=options)
    assert free.response.startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_in_the_answer_is_a_call_with_an_object(
    client: Any, edge: EdgeClient, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grammar makes the model write a call, as a trained one would without a marker."""
    monkeypatch.setattr(edge.tokenizer, "template", "tools")
    call = {
        "type": "object",
        "properties": {"name": {"const": "pick"}, "arguments": COLOR_SCHEMA},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    answer = client.chat(
        model="any",
        messages=MESSAGES,
        tools=[TOOL],
        format=call,
        options={"num_predict": 90, "seed": 1},
        stream=stream,
    )
    parts = list(answer) if stream else [answer]
    (found,) = [one for part in parts for one in part.message.tool_calls or ()]
    assert found.function.name == "pick"
    assert found.function.arguments["color"] in ("red", "blue")
    again = client.chat(
        model="any",
        messages=[
            *MESSAGES,
            {"role": "assistant", "tool_calls": [found]},
            {"role": "tool", "tool_name": "pick", "content": "done"},
        ],
        options={"num_predict": 3},
    )
    assert again.eval_count <= 3


def test_log_probabilities_stand_beside_the_text(client: Any) -> None:
    answer = client.chat(
        model="any", messages=MESSAGES, logprobs=True, top_logprobs=3, options=GREEDY
    )
    assert len(answer.logprobs) == 9
    assert all(len(entry.top_logprobs) == 3 for entry in answer.logprobs)


def test_a_request_without_a_prompt_says_that_the_model_is_loaded(client: Any) -> None:
    assert client.generate(model="any").done_reason == "load"
    (part,) = client.chat(model="any", messages=[], stream=True)
    assert (part.done, part.done_reason) == (True, "load")


def test_the_model_is_listed_and_described(client: Any, edge: EdgeClient) -> None:
    (listed,) = client.list().models
    assert (listed.model, listed.digest) == (edge.plan.model.id, edge.plan.model.sha256)
    shown = client.show("any")
    assert shown.capabilities == ["completion", "tools"]
    family = edge.plan.model.geometry.architecture
    assert shown.modelinfo[f"{family}.context_length"] == edge.plan.max_tokens


def test_the_server_says_its_version(url: str) -> None:
    assert httpx.get(f"{url}/api/version").json()["version"]


def test_a_body_without_a_type_is_read_from_programs_alone(url: str) -> None:
    body = json.dumps({"model": "any", "prompt": "a", "stream": False, "options": GREEDY})
    assert httpx.post(f"{url}/api/generate", content=body).status_code == 200
    page = {"origin": "https://evil.example"}
    assert httpx.post(f"{url}/api/generate", content=body, headers=page).status_code == 415
    assert httpx.post(f"{url}/v1/completions", content=body).status_code == 415


def test_errors_are_texts_and_statuses(client: Any, ollama: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="no embeddings") as caught:
        client.embed(model="any", input="x")
    assert caught.value.status_code == 501
    with pytest.raises(ollama.ResponseError, match="text only") as caught:
        client.chat(model="any", messages=[{"role": "user", "content": "a", "images": ["aGk="]}])
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="told apart"):
        list(client.generate(model="any", prompt="a", think=True, stream=True))


DEFAULT = CompletionRequest()


def chat(**fields: Any) -> ApiRequest:
    return ollama_chat({"model": "m", "messages": MESSAGES, **fields}, default=DEFAULT)


def generate(**fields: Any) -> ApiRequest:
    body = {"model": "m", "prompt": "a", **fields}
    return ollama_generate(body, default=DEFAULT, has_template=True)


def test_defaults_are_ollamas() -> None:
    asked = chat()
    sampling = asked.completion.sampling
    assert asked.stream
    assert sampling.temperature == pytest.approx(0.8)
    assert sampling.top_p == pytest.approx(0.9)
    assert sampling.top_k == 40
    assert (sampling.repetition_penalty, asked.completion.max_new_tokens) == (1.0, None)
    assert chat().completion.sampling.seed != sampling.seed
    assert chat(options={"seed": -1}).completion.sampling.seed != 2**64 - 1


def test_options_arrive_under_their_own_names() -> None:
    asked = chat(
        options={
            "repeat_penalty": 1.2,
            "num_predict": -1,
            "seed": 5,
            "min_p": 0.1,
            "level": "q3",
            "num_ctx": 4096,
            "repeat_last_n": -1,
        }
    )
    sampling = asked.completion.sampling
    assert sampling.seed == 5
    assert sampling.repetition_penalty == pytest.approx(1.2)
    assert sampling.min_p == pytest.approx(0.1)
    assert (asked.completion.max_new_tokens, asked.completion.level) == (None, "q3")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"options": [1]}, "options"),
        ({"options": {"temprature": 1}}, "temprature"),
        ({"options": {"temperature": "hot"}}, "temperature"),
        ({"options": {"repeat_penalty": "much"}}, "repeat_penalty"),
        ({"options": {"repeat_last_n": 64}}, "repeat_last_n"),
        ({"options": {"mirostat": 2}}, "mirostat"),
        ({"options": {"num_predict": 0}}, "num_predict"),
        ({"options": {"num_predict": "all"}}, "num_predict"),
        ({"options": {"seed": 0.5}}, "seed"),
        ({"options": {"stop": [1]}}, "stop"),
        ({"options": {"level": 3}}, "level"),
        ({"format": "xml"}, "format"),
        ({"format": ["json"]}, "format"),
        ({"format": {"a": "x" * 70_000}}, "format"),
        ({"stream": "no"}, "stream"),
        ({"think": "high"}, "think"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"n": 2}, "n"),
    ],
)
def test_what_is_wrong_is_named_on_both_routes(fields: dict[str, Any], param: str) -> None:
    for parse in (chat, generate):
        with pytest.raises(ApiError) as caught:
            parse(**fields)
        assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": ["user"]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "images": "x"}]}, "messages[0].images"),
        ({"messages": [{"role": "assistant", "thinking": "hm"}]}, "messages[0].thinking"),
        ({"messages": [{"role": "user", "tool_calls": [1]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0].tool_calls[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "tool", "tool_name": 5}]}, "messages[0].name"),
        ({"tools": [5]}, "tools[0]"),
        ({"prompt": "a"}, "prompt"),
    ],
)
def test_what_is_wrong_in_a_chat_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"system": ["a"]}, "system"),
        ({"system": "a", "raw": True}, "system"),
        ({"raw": "yes"}, "raw"),
        ({"suffix": "end"}, "suffix"),
        ({"images": ["aGk="]}, "images"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"messages": MESSAGES}, "messages"),
    ],
)
def test_what_is_wrong_in_a_generation_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        generate(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


DEEP: Any = "x"
for _ in range(900):
    DEEP = [DEEP]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show"])
@pytest.mark.parametrize(
    "content",
    [
        b'{"model": "m", "prompt": "\xff"}',
        b'{"prompt": "a"}',
        b'{"model": 5}',
        b'{"model": "m", "options": {"seed": 1, "seed": 2}}',
        b'{"model": "m", "messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b"[]",
        b"",
    ],
)
def test_a_hostile_body_is_one_line(url: str, path: str, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}{path}", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]
    assert isinstance(message, str)
    assert message
    assert "\n" not in message


@pytest.mark.parametrize("field", ["messages", "options", "format", "tools"])
def test_deep_nesting_is_a_400(url: str, field: str) -> None:
    answer = httpx.post(f"{url}/api/chat", json={"model": "m", field: DEEP})
    assert answer.status_code == 400, answer.text
    assert isinstance(answer.json()["error"], str)
