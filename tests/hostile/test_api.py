"""Hostile clients against a real `splitpoint api` in front of a real server of a tiny model."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import wire
from protos.messages import Description
from tests.conftest import ModelBench
from tests.hostile.processes import ListeningProcess, api_process, serve_process
from tests.hostile.raw_http import (
    CHAT,
    COMPLETIONS,
    Answer,
    chunked,
    connect,
    exchange,
    health,
    post,
    read_answer,
    request,
)
from tests.waiting import comes_true

SPLIT = 2
MIB = 1 << 20
NUM_CLIENTS = 20
SIEGE_S = 5.0
# Generous: the machine may be busy. An event loop that tokenizes is away for many times as long.
MOST_HEALTH_S = 2.0
MOST_GROWTH_BYTES = 100 * MIB
# The limits that `edge.api.connection` sets by itself.
MAX_CONNECTIONS = 256
HEADERS_S = 10.0
MODEL = "model"  # the folder's name


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def cloud(bench: ModelBench, logs: Path) -> Iterator[ListeningProcess]:
    with serve_process(bench.cloud_bundle(), log_path=logs / "serve.log") as process:
        yield process


@pytest.fixture(scope="module")
def bundle(bench: ModelBench) -> Path:
    return bench.chat_bundle(SPLIT)


@pytest.fixture(scope="module")
def shared_api(bundle: Path, cloud: ListeningProcess, logs: Path) -> Iterator[ListeningProcess]:
    with api_process(bundle, cloud.address, log_path=logs / "api.log") as process:
        yield process


@pytest.fixture
def api(shared_api: ListeningProcess, cloud: ListeningProcess) -> Iterator[ListeningProcess]:
    """The API, which must be as it was after every test: no word, no answer, no session."""
    assert comes_true(lambda: health(shared_api.address)["running"] == 0)
    said = shared_api.log()
    yield shared_api
    assert shared_api.is_alive
    assert comes_true(lambda: health(shared_api.address)["running"] == 0)
    assert comes_true(lambda: described(cloud).kv_bytes_in_use == 0, within_s=5.0)
    assert shared_api.log() == said


def described(cloud: ListeningProcess) -> Description:
    with grpc.insecure_channel(cloud.address) as channel:
        call = channel.unary_unary(
            wire.DESCRIBE_PATH, request_serializer=None, response_deserializer=None
        )
        return wire.decode_description(call(wire.encode_describe_request(), timeout=20))


def completion(prompt: Any = "hello", **changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": 2, "temperature": 0, **changes}


def chat(*messages: Any, **changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": list(messages), "max_tokens": 2, **changes}


USER = {"role": "user", "content": "hello"}


def test_an_honest_request_is_answered(api: ListeningProcess) -> None:
    answer = post(api.address, CHAT, chat(USER))
    assert answer.status == 200, answer
    assert post(api.address, COMPLETIONS, completion()).status == 200


def test_large_prompts_neither_stop_the_server_nor_fill_its_memory(api: ListeningProcess) -> None:
    prompt = "word " * (4 * MIB // 5 - 100)
    whole = request(COMPLETIONS, json.dumps(completion(prompt)).encode())
    blocks = chunked([json.dumps(completion(prompt)).encode()])
    without_length = request(
        COMPLETIONS, headers={"Content-Length": "", "Transfer-Encoding": "chunked"}
    )
    until_s = time.monotonic() + SIEGE_S
    answers: list[Answer] = []

    def send(data: bytes) -> None:
        while time.monotonic() < until_s:
            answers.append(exchange(api.address, data))

    before_bytes = api.rss_bytes()
    clients = [
        threading.Thread(target=send, args=(whole if index % 2 else without_length + blocks,))
        for index in range(NUM_CLIENTS)
    ]
    for client in clients:
        client.start()
    slowest_s, most_bytes = 0.0, 0
    while any(client.is_alive() for client in clients):
        began_s = time.monotonic()
        health(api.address)
        slowest_s = max(slowest_s, time.monotonic() - began_s)
        most_bytes = max(most_bytes, api.rss_bytes())
        time.sleep(0.02)
    assert len(answers) >= NUM_CLIENTS
    assert {(answer.status, answer.error()["code"]) for answer in answers} == {
        (413, "context_length_exceeded")
    }
    assert slowest_s < MOST_HEALTH_S
    assert most_bytes - before_bytes < MOST_GROWTH_BYTES


def test_a_prompt_beyond_the_plan_is_a_context_error_whatever_its_size(
    api: ListeningProcess,
) -> None:
    for num_chars in (300, 2_000, 5_000, 100_000):
        for answer in (
            post(api.address, COMPLETIONS, completion("x" * num_chars)),
            post(api.address, CHAT, chat({"role": "user", "content": "x" * num_chars})),
        ):
            assert (answer.status, answer.error()["code"]) == (400, "context_length_exceeded")


def test_a_token_id_out_of_range_is_refused_before_the_cloud_hears_of_it(
    api: ListeningProcess, cloud: ListeningProcess
) -> None:
    for ids in ([1, 320], [-1], [5, 1 << 31], [1 << 63], [10**4000], [1] * 16 + [320]):
        answer = post(api.address, COMPLETIONS, completion(ids))
        assert answer.status == 400, answer
        assert "must lie between 0 and 319" in answer.error()["message"]
    assert described(cloud).kv_bytes_in_use == 0


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not JSON"),
    "no object": (b"[1]", "JSON object"),
    "cut off": (b'{"model": ', "not JSON"),
    "no utf-8": (b'{"model": "\xff"}', "not UTF-8"),
    "utf-16": ('{"model": "m"}'.encode("utf-16"), "not UTF-8"),
    "a key twice": (b'{"model": "model", "prompt": "a", "prompt": "b"}', "twice"),
    "NaN": (b'{"model": "model", "prompt": "a", "temperature": NaN}', "NaN"),
    "Infinity": (b'{"model": "model", "prompt": "a", "top_p": -Infinity}', "Infinity"),
    "deep lists": (b'{"prompt": ' + b"[" * 50_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 20_000, "nested too deeply"),
    "an endless integer": (b'{"model": "model", "prompt": [' + b"9" * 9_000 + b"]}", "not JSON"),
    "a huge number": (b'{"model": "model", "prompt": "a", "temperature": 1e999}', "temperature"),
    "a huge integer": (
        b'{"model": "model", "prompt": "a", "max_tokens": ' + b"9" * 400 + b"}",
        "",
    ),
    "stream: yes": (b'{"model": "model", "prompt": "a", "stream": "yes"}', "stream"),
    "a number for a prompt": (b'{"model": "model", "prompt": 5}', "prompt"),
    "no model": (b'{"prompt": "a"}', "model is missing"),
    "model: null": (b'{"model": null, "prompt": "a"}', "model is missing"),
    "an unknown key": (b'{"model": "model", "prompt": "a", "\\ud83d": 1}', "surrogate"),
    "a key of many characters": (
        b'{"model": "model", "prompt": "a", "' + b"k" * 60_000 + b'": 1}',
        "unrecognized",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_wrong_is_one_clear_error(api: ListeningProcess, name: str) -> None:
    body, says = BODIES[name]
    answer = exchange(api.address, request(COMPLETIONS, body))
    assert answer.status == 400, answer
    assert says in answer.error()["message"]
    assert len(answer.body) < 1_000  # a client's own words are not sent back to it


BODY = json.dumps(completion()).encode()
CHUNKED = {"Content-Length": "", "Transfer-Encoding": "chunked"}
REQUESTS: dict[str, tuple[bytes, int]] = {
    "no content type": (request(COMPLETIONS, BODY, headers={"Content-Type": ""}), 415),
    "text": (request(COMPLETIONS, BODY, headers={"Content-Type": "text/plain"}), 415),
    "latin-1": (
        request(COMPLETIONS, BODY, headers={"Content-Type": "application/json; charset=latin-1"}),
        415,
    ),
    "gzip": (
        request(COMPLETIONS, gzip.compress(BODY), headers={"Content-Encoding": "gzip"}),
        415,
    ),
    "GET": (request(CHAT, method="GET"), 405),
    "DELETE": (request(COMPLETIONS, method="DELETE"), 405),
    "POST of the models": (request("/v1/models", BODY), 405),
    "OPTIONS": (request(CHAT, method="OPTIONS"), 405),
    "no such path": (request("/v1/moderations", BODY), 404),
    "no such model": (request("/v1/models/other", method="GET"), 404),
    "another host": (request(COMPLETIONS, BODY, headers={"Host": "evil.example"}), 403),
    "a long header": (request(COMPLETIONS, BODY, headers={"X": "y" * 200_000}), 431),
    "many headers": (
        request(COMPLETIONS, BODY, headers={f"X-{index}": "y" * 50 for index in range(5_000)}),
        431,
    ),
    "a long path": (request("/" + "x" * 200_000, BODY), 431),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no version": (b"GET /health\r\n\r\n", 400),
    "two lengths": (request(COMPLETIONS, BODY, headers={"content-length": "3"}), 400),
    "a negative length": (request(COMPLETIONS, BODY, headers={"Content-Length": "-5"}), 400),
    "a bad chunk": (request(COMPLETIONS, headers=CHUNKED) + b"zz\r\n", 400),
    "a length of 4 GiB": (request(COMPLETIONS, headers={"Content-Length": str(1 << 32)}), 413),
    "an unknown transfer": (request(COMPLETIONS, headers={"Transfer-Encoding": "br"}), 501),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_is_wrong_has_its_status(api: ListeningProcess, name: str) -> None:
    data, status = REQUESTS[name]
    answer = exchange(api.address, data)
    assert answer.status == status, answer
    answer.error()


def test_the_methods_of_a_path_are_named(api: ListeningProcess) -> None:
    answer = exchange(api.address, request(CHAT, method="PUT"))
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_head_has_no_body(api: ListeningProcess) -> None:
    for path, status in (("/health", 200), (CHAT, 405), ("/nothing", 404)):
        answer = exchange(api.address, request(path, method="HEAD"), "HEAD")
        assert (answer.status, answer.body) == (status, b"")


def test_requests_in_one_block_are_answered_in_order(api: ListeningProcess) -> None:
    with connect(api.address) as connection:
        ask = request("/health", method="GET")
        connection.sendall(ask + request(COMPLETIONS, BODY) + request(CHAT, b"{") + ask)
        statuses = [read_answer(connection).status for _ in range(4)]
    assert statuses == [200, 200, 400, 200]


def test_a_client_that_waits_for_continue_gets_it_only_for_a_body_that_is_wanted(
    api: ListeningProcess,
) -> None:
    expect = {"Expect": "100-continue", "Content-Length": str(len(BODY))}
    with connect(api.address) as connection:
        connection.sendall(request(COMPLETIONS, headers=expect))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(BODY)
        assert read_answer(connection).status == 200
    refused = exchange(
        api.address, request(COMPLETIONS, headers={**expect, "Content-Type": "text/plain"})
    )
    assert refused.status == 415


RESPONSES = "/v1/responses"
OLLAMA = "/api/generate"
STREAM = json.dumps(completion(max_tokens=150, stream=True)).encode()
RESPONSE_STREAM = json.dumps(
    {"model": MODEL, "input": "hello", "max_output_tokens": 150, "stream": True}
).encode()
OLLAMA_STREAM = json.dumps(
    {"model": MODEL, "prompt": "hello", "options": {"num_predict": 150}}
).encode()
WHOLE = json.dumps(completion(max_tokens=150)).encode()


@pytest.mark.parametrize("resets", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize(
    ("data", "waits_for"),
    [
        (b"", 0),
        (b"POST /v1/comp", 0),
        (request(COMPLETIONS, STREAM)[: -len(STREAM)], 0),
        (request(COMPLETIONS, STREAM)[:-5], 0),
        (request(COMPLETIONS, headers=CHUNKED) + b"ff\r\n{", 0),
        (request(COMPLETIONS, WHOLE), 0),
        (request(COMPLETIONS, STREAM), 0),
        (request(COMPLETIONS, STREAM), 1),
        (request(COMPLETIONS, STREAM), 2_000),
        (request(RESPONSES, RESPONSE_STREAM), 2_000),
        (request(OLLAMA, OLLAMA_STREAM), 1_000),
    ],
    ids=[
        "at once",
        "in the first line",
        "before the body",
        "in the body",
        "in a chunk",
        "while it is worked on",
        "before the stream",
        "in the stream",
        "later in the stream",
        "in a response's stream",
        "in Ollama's stream",
    ],
)
def test_hanging_up_leaves_nothing_behind(
    api: ListeningProcess, data: bytes, waits_for: int, resets: bool
) -> None:
    """No line in the log, no slot taken, no session in the cloud: the fixture looks."""
    for _ in range(3):
        with connect(api.address) as connection:
            connection.sendall(data)
            num_read = 0
            while num_read < waits_for:
                num_read += len(connection.recv(4_096))
            if resets:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if data.endswith((STREAM, WHOLE, RESPONSE_STREAM, OLLAMA_STREAM)):
            assert comes_true(lambda: health(api.address)["running"] == 0)


def test_a_request_while_all_slots_are_taken_is_refused_before_its_body(
    api: ListeningProcess,
) -> None:
    with connect(api.address) as busy:
        busy.sendall(request(COMPLETIONS, STREAM))
        busy.recv(1)
        refused = exchange(api.address, request(COMPLETIONS, headers={"Content-Length": "1000"}))
    assert refused.status == 429
    assert refused.error()["code"] == "rate_limit_exceeded"
    assert int(refused.headers["retry-after"]) >= 1


def test_connections_that_say_nothing_are_few_and_end(api: ListeningProcess) -> None:
    before = api.num_descriptors()
    beginnings = [b"", b"POST /v1/chat"]
    began_s = time.monotonic()
    connections = [connect(api.address) for _ in range(MAX_CONNECTIONS + 50)]
    try:
        for index, connection in enumerate(connections[:MAX_CONNECTIONS]):
            connection.sendall(beginnings[index % len(beginnings)])
        refused = read_answer(connections[-1])
        assert (refused.status, refused.error()["code"]) == (429, "too_many_connections")
        assert comes_true(lambda: api.num_descriptors() <= before + MAX_CONNECTIONS + 5)
        late = read_answer(connections[1])
        assert (late.status, late.error()["code"]) == (408, "request_timeout")
        assert connections[0].recv(1) == b""
        assert time.monotonic() - began_s >= HEADERS_S - 1
    finally:
        for connection in connections:
            connection.close()
    assert comes_true(lambda: api.num_descriptors() <= before + 5)


def test_the_end_of_the_server_ends_its_sessions_without_a_traceback(
    bundle: Path, cloud: ListeningProcess, tmp_path: Path
) -> None:
    with api_process(bundle, cloud.address, log_path=tmp_path / "api.log") as process:
        slow = json.dumps(completion(max_tokens=190, stream=True)).encode()
        with connect(process.address) as connection, connect(process.address) as silent:
            silent.sendall(b"POST /v1")
            connection.sendall(request(COMPLETIONS, slow))
            connection.recv(1)
            process.terminate()
        assert comes_true(lambda: described(cloud).kv_bytes_in_use == 0, within_s=5.0)
        assert described(cloud).active_sessions == 0
        assert "Traceback" not in process.log()
        assert "ERROR" not in process.log()
