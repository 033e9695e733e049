"""The official client and curl against the API, with a real server of a tiny model behind it."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from edge.api.access import ApiAccess
from edge.api.server import ApiConfig
from edge.client import EdgeClient
from edge.errors import InputError
from edge.generation.completion import CompletionRequest, CompletionRun
from tests.conftest import ModelBench
from tests.edge.api.running import running_api
from tests.end_to_end.servers import RunningServer
from tests.waiting import comes_true

SPLIT = 2
CONCURRENCY = 2
MESSAGES: Any = [{"role": "user", "content": "tell me"}]


@pytest.fixture(scope="module")
def edge(bench: ModelBench, server: RunningServer) -> Iterator[EdgeClient]:
    """A client whose model has a chat template."""
    bundle = bench.chat_bundle(SPLIT)
    with EdgeClient(bundle, server.address, concurrency=CONCURRENCY) as client:
        yield client


@pytest.fixture(scope="module")
def url(edge: EdgeClient) -> Iterator[str]:
    with running_api(edge, ApiConfig(port=0, concurrency=CONCURRENCY)) as base:
        yield base


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def model(edge: EdgeClient) -> str:
    return edge.plan.model.id


def test_the_models_are_listed(client: openai.OpenAI, model: str) -> None:
    assert [entry.id for entry in client.models.list()] == [model]
    assert client.models.retrieve(model).owned_by == "splitpoint"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-none")


def test_a_chat_answers_what_the_edge_client_answers(
    client: openai.OpenAI, edge: EdgeClient, model: str
) -> None:
    expected = edge.complete(MESSAGES, CompletionRequest(max_new_tokens=9))
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=9, temperature=0
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9
    assert answer.usage.total_tokens == expected.num_prompt_tokens + 9


def test_a_stream_brings_the_same_text_and_its_usage(client: openai.OpenAI, model: str) -> None:
    request: Any = {"model": model, "messages": MESSAGES, "max_tokens": 9, "temperature": 0}
    whole = client.chat.completions.create(**request)
    chunks = list(
        client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_who_has_an_answer_may_ask_again_at_once(bench: ModelBench, server: RunningServer) -> None:
    """One request at a time is allowed, and a client that asks one after another never sees 429."""
    with (
        EdgeClient(bench.edge_bundle(SPLIT), server.address) as alone,
        running_api(alone, ApiConfig(port=0, concurrency=1)) as base,
        openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as client,
    ):
        for index in range(40):
            stream = index % 2 == 0
            answer: Any = client.completions.create(
                model=alone.plan.model.id, prompt="again", max_tokens=2, stream=stream
            )
            if stream:
                assert list(answer)[-1].choices[0].finish_reason


def test_a_seed_makes_an_answer_repeatable(client: openai.OpenAI, model: str) -> None:
    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=12, seed=seed
        )
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_logprobs_of_a_chat(client: openai.OpenAI, model: str) -> None:
    request: Any = {"model": model, "messages": MESSAGES, "max_tokens": 5, "temperature": 0}
    whole = client.chat.completions.create(**request, logprobs=True)
    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 5
    assert all(entry.logprob <= 0 for entry in content)
    tokens = "".join(entry.token for entry in content)
    assert tokens.startswith(whole.choices[0].message.content or "none")
    streamed = [
        entry
        for chunk in client.chat.completions.create(**request, logprobs=True, stream=True)
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or ()
    ]
    assert [entry.logprob for entry in streamed] == [entry.logprob for entry in content]


def test_plain_completions_with_text_and_token_ids(
    client: openai.OpenAI, edge: EdgeClient, model: str
) -> None:
    request: Any = {"model": model, "max_tokens": 6, "temperature": 0, "logprobs": 1}
    text = client.completions.create(prompt="once upon", **request)
    ids = client.completions.create(prompt=edge.tokenizer.encode("once upon"), **request)
    assert text.choices[0].text == ids.choices[0].text
    logprobs = text.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == 6
    chunks = list(client.completions.create(prompt="once upon", stream=True, **request))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text.choices[0].text


def test_a_stop_text_ends_the_answer_before_it(client: openai.OpenAI, model: str) -> None:
    request: Any = {"model": model, "messages": MESSAGES, "max_tokens": 20, "temperature": 0}
    text = client.chat.completions.create(**request).choices[0].message.content or ""
    stop = text[len(text) // 2 :][:3]
    stopped = client.chat.completions.create(**request, stop=[stop])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == text[: text.find(stop)]
    chunks = client.chat.completions.create(**request, stop=stop, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == text[: text.find(stop)]


def test_bad_requests_are_errors_in_openais_shape(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=MESSAGES, n=9)
    assert caught.value.param == "n"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="x" * 500)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-none")
    assert missing.value.code == "model_not_found"


def test_curl_gets_events_and_errors(url: str, model: str) -> None:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 4, "stream": True}
    events = curl(f"{url}/v1/chat/completions", json.dumps(body)).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-2])
    assert "not JSON" in curl(f"{url}/v1/chat/completions", "{oops")
    assert "must be JSON" in curl(f"{url}/v1/chat/completions", "{}", kind="text/plain")
    assert "Not Found" in curl(f"{url}/v1/nonsense", "{}")


def curl(url: str, body: str, kind: str = "application/json") -> str:
    command = ["curl", "-sN", url, "-H", f"Content-Type: {kind}", "-d", body]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "[", ""])
def test_a_page_whose_name_resolves_to_this_machine_is_refused(url: str, host: str) -> None:
    answer = httpx.get(f"{url}/v1/models", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.2"])
def test_every_loopback_name_is_answered(url: str, host: str) -> None:
    assert httpx.get(f"{url}/v1/models", headers={"host": host}).status_code == 200


def test_a_body_without_end_is_cut_off(url: str) -> None:
    answer = httpx.post(
        f"{url}/v1/completions",
        content=b"x" * (5 << 20),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 413


def test_requests_beyond_the_limit_are_told_when_to_come_again(
    url: str, edge: EdgeClient, model: str
) -> None:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 3}
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(httpx.post(f"{url}/v1/chat/completions", json=body).status_code)

    fronts = [edge._fronts.get() for _ in range(CONCURRENCY)]  # answers cannot begin yet
    waiting = [threading.Thread(target=ask) for _ in range(CONCURRENCY)]
    for thread in waiting:
        thread.start()
    assert comes_true(lambda: running(url) == CONCURRENCY)
    refused = httpx.post(f"{url}/v1/chat/completions", json=body)
    for front in fronts:
        edge._fronts.put(front)
    for thread in waiting:
        thread.join()
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert statuses == [200] * CONCURRENCY
    assert comes_true(lambda: running(url) == 0)


def running(url: str) -> int:
    count: int = httpx.get(f"{url}/health").json()["running"]
    return count


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_frees_the_clouds_cache(
    url: str, model: str, server: RunningServer, stream: bool
) -> None:
    assert comes_true(lambda: running(url) == 0)
    body = json.dumps(
        {"model": model, "messages": MESSAGES, "max_tokens": 150, "stream": stream, "level": "auto"}
    )
    host, port = url.removeprefix("http://").split(":")
    pool = server.server.pool
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(raw_post(host, body))
        assert comes_true(lambda: pool.used_bytes > 0)
    assert comes_true(lambda: pool.used_bytes == 0)
    assert comes_true(lambda: running(url) == 0)


def raw_post(host: str, body: str) -> bytes:
    """A request for a connection that can be closed at any moment."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


def test_hanging_up_before_the_first_token_of_a_stream_ends_the_generation(
    url: str, edge: EdgeClient, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = threading.Event()
    monkeypatch.setattr(CompletionRun, "cancel", lambda _: cancelled.set())
    body = json.dumps({"model": model, "messages": MESSAGES, "max_tokens": 2, "stream": True})
    host, port = url.removeprefix("http://").split(":")
    fronts = [edge._fronts.get() for _ in range(CONCURRENCY)]  # the answer cannot begin yet
    try:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(raw_post(host, body))
            assert comes_true(lambda: running(url) == 1)
        assert cancelled.wait(5)
    finally:
        for front in fronts:
            edge._fronts.put(front)
    assert comes_true(lambda: running(url) == 0)


def test_a_generation_that_cannot_be_set_up_gives_its_front_back(
    edge: EdgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise InputError("no such thing")

    monkeypatch.setattr(edge._generations, "generation", broken)
    with pytest.raises(InputError, match="no such thing"):
        edge.complete("x", CompletionRequest(max_new_tokens=1))
    assert edge._fronts.qsize() == CONCURRENCY


def test_requests_at_once_do_not_mix(client: openai.OpenAI, model: str) -> None:
    def ask(seed: int) -> str | None:
        return (
            client.completions.create(
                model=model, prompt=f"story {seed}", max_tokens=15, seed=seed, temperature=0.8
            )
            .choices[0]
            .text
        )

    alone = [ask(seed) for seed in range(2)]
    together: dict[int, str | None] = {}

    def keep(seed: int) -> None:
        together[seed] = ask(seed)

    threads = [threading.Thread(target=keep, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in range(2)] == alone


GUARDED = [
    *(("GET", path) for path in ("/v1/models", "/metrics", "/api/tags", "/api/version")),
    *(("POST", f"/v1/{name}") for name in ("chat/completions", "completions", "responses")),
    *(("POST", f"/api/{name}") for name in ("chat", "generate", "show", "embed")),
    ("POST", "/v1/embeddings"),
]


def test_a_key_is_asked_for_and_compared(edge: EdgeClient, model: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# the phone\nsecret-1\nsecret-2\n")
    config = ApiConfig(port=0, access=ApiAccess(key_file=keys))
    with running_api(edge, config) as base:
        with (
            openai.OpenAI(base_url=f"{base}/v1", api_key="secret", max_retries=0) as wrong,
            pytest.raises(openai.AuthenticationError),
        ):
            wrong.models.list()
        with openai.OpenAI(base_url=f"{base}/v1", api_key="secret-2", max_retries=0) as right:
            assert [entry.id for entry in right.models.list()] == [model]
        health = httpx.get(f"{base}/health")
        assert (health.status_code, health.json()["server"]) == (200, "unknown")
        for method, path in GUARDED:
            assert httpx.request(method, f"{base}{path}", json={}).status_code == 401, path


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org", "::"])
def test_listening_beyond_loopback_needs_tls_and_a_key(host: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("k")
    with pytest.raises(InputError, match="refusing to listen"):
        ApiAccess().check(host)
    with pytest.raises(InputError, match="refusing to listen"):
        ApiAccess(key_file=keys).check(host)
    ApiAccess(insecure=True).check(host)
    ApiAccess(key_file=keys, tls_cert=keys, tls_key=keys).check(host)
    ApiAccess().check("127.0.0.1")


def test_a_lost_cloud_server_is_a_503(bench: ModelBench, tmp_path: Path) -> None:
    from optimizer.policy.retry import RetryPolicy

    retry_policy = RetryPolicy(connect_s=0.3)
    bundle = bench.edge_bundle(SPLIT)
    with (
        EdgeClient(bundle, "127.0.0.1:1", retry_policy=retry_policy) as lonely,
        running_api(lonely, ApiConfig(port=0)) as base,
    ):
        body = {"model": lonely.plan.model.id, "prompt": "x"}
        for stream in (False, True):
            answer = httpx.post(f"{base}/v1/completions", json={**body, "stream": stream})
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "server_lost"


BAD_BODIES = [
    '"prompt": "\\ud83d"',
    '"prompt": "a", "stop": ["\\ud83d"]',
    '"prompt": "a", "\\ud83d": 1',
    '"prompt": [1, 99999999999999999999]',
    '"prompt": [-1]',
    '"prompt": "a", "top_p": 1e-50',
    '"prompt": "a", "temperature": 1e-308',
    '"prompt": "a", "repetition_penalty": 1e-300',
    '"prompt": "a", "deadline_tbt_s": 0',
    '"prompt": "a", "deadline_tbt_s": 1e11',
    '"prompt": "a", "max_tokens": 99999999999999999999',
]


@pytest.mark.parametrize("fields", BAD_BODIES)
def test_what_the_next_layer_cannot_carry_is_a_400(url: str, model: str, fields: str) -> None:
    answer = httpx.post(
        f"{url}/v1/completions",
        content=f'{{"model": "{model}", {fields}}}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_bytes_and_tokens_of_the_log_probabilities_join_to_the_text(
    client: openai.OpenAI, model: str, stream: bool
) -> None:
    request: Any = {"model": model, "messages": MESSAGES, "max_tokens": 60, "temperature": 1.5}
    request |= {"seed": 3, "logprobs": True, "extra_body": {"repetition_penalty": 1.5}}
    answer: Any = client.chat.completions.create(**request, stream=stream)
    chunks = list(answer) if stream else [answer]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    text = "".join((c.delta if stream else c.message).content or "" for c in choices)
    tokens = [entry for c in choices if c.logprobs for entry in c.logprobs.content]
    assert b"".join(bytes(entry.bytes) for entry in tokens).decode("utf-8", "replace") == text
    assert "\ufffd" in text  # random bytes: the case is there


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_and_tokens_of_a_completion_are_places_in_its_text(
    client: openai.OpenAI, model: str, stream: bool
) -> None:
    request: Any = {"model": model, "prompt": "a", "max_tokens": 40, "temperature": 1.5, "seed": 4}
    answer: Any = client.completions.create(**request, logprobs=1, stream=stream)
    choices = [c for chunk in (answer if stream else [answer]) for c in chunk.choices]
    text = "".join(choice.text for choice in choices)
    told = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for part in told for token in part.tokens]
    offsets = [offset for part in told for offset in part.text_offset]
    assert "".join(token for token in tokens if token != "</s>") == text
    for token, offset in zip(tokens, offsets, strict=True):
        assert token == "</s>" or text[offset : offset + len(token)] == token


def test_more_requests_wait_for_their_turn_where_there_is_a_queue(
    edge: EdgeClient, model: str
) -> None:
    """The client has one front, so three requests at once are answered one after another."""
    body = {"model": model, "prompt": "again", "max_tokens": 4, "temperature": 0}
    with running_api(edge, ApiConfig(port=0, queue=2)) as url:

        def ask(_: int) -> int:
            return httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code

        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(ask, range(3))) == [200, 200, 200]
        said = httpx.get(f"{url}/metrics").text
    assert 'splitpoint_api_requests_total{status="200"} 3' in said
    assert "splitpoint_api_tokens_total 12" in said
    assert "again" not in said


def test_a_web_page_may_use_the_api_where_its_origin_is_named(edge: EdgeClient) -> None:
    page = "https://chat.example"
    asking = {"Origin": page, "Access-Control-Request-Method": "POST"}
    asking["Access-Control-Request-Headers"] = "authorization, content-type, x-stainless-os"
    with running_api(edge, ApiConfig(port=0, origins=(page,))) as url:
        allowed = httpx.options(f"{url}/v1/chat/completions", headers=asking)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == page
        assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
        other = {**asking, "Origin": "https://elsewhere.example"}
        refused = httpx.options(f"{url}/v1/chat/completions", headers=other)
        assert "access-control-allow-origin" not in refused.headers
    with running_api(edge, ApiConfig(port=0)) as url:
        silent = httpx.get(f"{url}/health", headers={"Origin": page})
        assert "access-control-allow-origin" not in silent.headers
