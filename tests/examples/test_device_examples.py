"""The examples run as they are, against a server of a tiny model."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer
from tests.examples.loading import example


@pytest.fixture(scope="module")
def bundle(bench: ModelBench) -> str:
    return str(bench.chat_bundle(2))


def test_the_python_api_streams_and_tells_what_it_cost(
    bundle: str, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example("python_api").main([bundle, server.address, "hello"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out) > 5
    assert "tokens/s" in shown.err


def test_the_chat_goes_on_beyond_the_plans_tokens(
    bundle: str, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five answers of up to 256 tokens in a plan of 200."""
    lines = io.StringIO("hello\nand then?\n/new\nagain\n\nnever asked\n")
    assert example("terminal_chat").main([bundle, server.address], lines) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_the_device_loop_answers_and_outlives_a_bad_question(
    bundle: str,
    server: RunningServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"one\n\n{'x' * 400}\ntwo\n"))
    arguments = [bundle, server.address, "--max-new-tokens", "4"]
    assert example("device_loop").main(arguments) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["question"][:3] for answer in answers] == ["one", "xxx", "two"]
    assert "plan allows" in answers[1]["error"]
    assert answers[0]["finish_reason"] in ("length", "stop")
    assert answers[2]["uplink_bytes"] > 0


def test_several_answers_come_at_once_through_asyncio(
    bundle: str, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("async_api")
    assert module.main([bundle, server.address]) == 0
    said = capsys.readouterr().out
    assert all(question in said for question in module.QUESTIONS)
