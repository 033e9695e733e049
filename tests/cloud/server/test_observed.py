"""What a server shows of itself: metrics and logs."""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloud.server.logs import JsonFormatter, trace_id
from protos.messages import (
    Close,
    Frame,
)
from tests.cloud.serving import (
    PROMPT,
    RawStream,
    Served,
    connected,
    generate,
    run,
    until,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


PARENT = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")


def labels_without_model(labels: dict[str, str]) -> list[str]:
    assert labels.get("model", "tiny-llama") == "tiny-llama"
    return [value for name, value in labels.items() if name != "model"]


def metrics_of(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return {
        "/".join((sample.name, *labels_without_model(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_happened(served: Served) -> None:
    async def scenario() -> None:
        config = replace(served.config, metrics_port=0)
        async with connected(config) as (server, channel):
            assert server.metrics_port is not None
            stream = await RawStream(channel).open()
            await generate(served, stream, PROMPT, 5)
            bad = await RawStream(channel).open(session_id="bad")
            await bad.send(Frame(sequence=0, first_position=0, token_ids=(1,), hidden=b"x"))
            await bad.refused()
            ids = await RawStream(channel).open(session_id="ids", token_rows=3)
            frame = Frame(sequence=0, first_position=0, token_ids=(1, 2, 3), hidden=b"")
            await ids.ask(replace(frame, want_token=False))
            await ids.send(Close())
            await until(lambda: server.admission.num_sessions == 1)
            seen = await asyncio.to_thread(metrics_of, server.metrics_port)
            assert seen["splitpoint_tokens_total"] == 5
            assert seen["splitpoint_id_rows_total"] == 3
            assert seen["splitpoint_ttft_seconds_count"] == 1
            assert seen["splitpoint_tbt_seconds_count"] == 4
            assert seen["splitpoint_batch_rows_sum"] == len(PROMPT) + 4 + 3
            assert seen["splitpoint_errors_total/BadFrameError"] == 1
            assert seen["splitpoint_sessions"] == 1
            assert seen["splitpoint_kv_blocks_used"] == server.pool.used_blocks > 0
            assert seen["splitpoint_message_bytes_total/up"] > 4 * 64 * len(PROMPT)

    run(scenario)


def health_of(port: int) -> tuple[int, str]:
    """Status and body of GET /health."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_health_over_http_turns_when_a_drain_begins(served: Served) -> None:
    async def scenario() -> None:
        config = replace(served.config, metrics_port=0)
        async with connected(config) as (server, channel):
            assert server.metrics_port is not None
            stream = await RawStream(channel).open()
            assert await asyncio.to_thread(health_of, server.metrics_port) == (200, "SERVING\n")
            drain = asyncio.create_task(server.drain(20))
            await until(lambda: server.admission.draining)
            seen = await asyncio.to_thread(health_of, server.metrics_port)
            assert seen == (503, "NOT_SERVING\n")
            await stream.send(Close())
            await drain

    run(scenario)


def test_logs_are_json_with_ids_and_without_contents(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "0123456789abcdef0123456789abcdef"

    async def scenario() -> None:
        async with connected(served.config) as (_, channel):
            stream = await RawStream(channel, (PARENT,)).open(session_id=secret)
            await generate(served, stream, PROMPT, 2)
            await stream.send(Close())
            await stream.receive()

    with caplog.at_level(logging.INFO, logger="cloud"):
        run(scenario)
    lines: list[dict[str, Any]] = [
        json.loads(JsonFormatter().format(record)) for record in caplog.records
    ]
    ended = next(line for line in lines if line["event"] == "session_ended")
    assert (ended["session"], ended["trace_id"], ended["tokens"]) == (secret[:8], TRACE, 2)
    assert not any(secret in json.dumps(line) for line in lines)


@pytest.mark.parametrize("value", [None, "", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "rubbish"])
def test_a_malformed_traceparent_is_no_trace(value: str | None) -> None:
    assert trace_id(value) is None
