"""A chat outlives what goes wrong in it: stopped answers, lost servers, questions too long."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cloud.server.process import ServerConfig
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from optimizer.policy.retry import RetryPolicy
from splitpoint.chat import session
from splitpoint.chat.answering import stopped_by_ctrl_c
from splitpoint.chat.plain_lines import Lines, PlainLines, next_entry
from splitpoint.cli import main
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer

SPLIT = 2


def script(monkeypatch: pytest.MonkeyPatch, *lines: str | Callable[[], str]) -> None:
    """What the user types, line by line, then Ctrl-D. A function is called when its turn comes."""
    left = list(lines)

    def entry(lines: Lines) -> str | None:
        if not left:
            return None
        line = left.pop(0)
        return line if isinstance(line, str) else line()

    monkeypatch.setattr(session, "next_entry", entry)


def test_a_server_killed_between_turns_costs_a_retry_and_not_the_conversation(
    bench: ModelBench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ServerConfig(bundle=bench.cloud_bundle(), port=0, kv_memory_bytes=1 << 28)
    server = RunningServer(config)
    server.start()
    address = server.address
    port = int(address.rpartition(":")[2])
    asked: list[list[str]] = []
    start = EdgeClient.start

    def spy(self: EdgeClient, prompt: object, request: object) -> object:
        asked.append([message["content"] for message in prompt])  # type: ignore[attr-defined]
        return start(self, prompt, request)  # type: ignore[arg-type]

    monkeypatch.setattr(EdgeClient, "start", spy)
    monkeypatch.setattr(
        "optimizer.policy.retry.RetryPolicy", partial(RetryPolicy, connect_s=3.0, attempt_s=1.0)
    )
    running = [server]

    def kill() -> str:
        running.pop().stop()
        return "two"

    def restart() -> str:
        again = RunningServer(
            ServerConfig(bundle=config.bundle, port=port, kv_memory_bytes=1 << 28)
        )
        again.start()
        running.append(again)
        return ""

    script(monkeypatch, "one", kill, restart, "three", "/exit", "never asked")
    arguments = ["--server", address, "--max-new-tokens", "3", "--temperature", "0"]
    bundle = str(bench.chat_bundle(SPLIT))
    try:
        assert main(["chat", bundle, *arguments, "--recover-within", "3", "--ignore-eos"]) == 0
    finally:
        for left in running:
            left.stop()
    said = capsys.readouterr().err
    assert said.count("] 3 tokens, ") == 3
    assert f"no server answers at {address}" in said
    assert "the conversation is kept: Return asks again" in said
    assert [texts[::2] for texts in asked] == [
        ["one"],
        ["one", "two"],
        ["one", "two"],
        ["one", "two", "three"],
    ]


def test_a_question_beyond_the_plan_is_withdrawn_and_the_chat_goes_on(
    bench: ModelBench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, "x" * 500, "/retry", "hi", "a\ud83d")
    bundle = bench.chat_bundle(bench.num_layers)
    assert main(["chat", str(bundle), "--max-new-tokens", "3", "--ignore-eos"]) == 0
    said = capsys.readouterr().err
    assert "the plan allows 200" in said
    assert "every question has its answer" in said
    assert said.count("] 3 tokens, ") == 1
    assert "half of a surrogate pair" in said


def test_ctrl_c_stops_the_answer_and_the_client_is_whole(
    bench: ModelBench, server: RunningServer
) -> None:
    endless = CompletionRequest(max_new_tokens=1 << 20, ignore_eos=True, context="shift")
    handler = signal.getsignal(signal.SIGINT)
    with EdgeClient(bench.edge_bundle(SPLIT), server.address) as client:
        answer = client.start("abc", endless)
        with stopped_by_ctrl_c(answer):
            for number, _ in enumerate(answer):
                if number == 3:
                    signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is handler
        assert answer.completion.finish_reason == "cancelled"
        assert len(answer.completion.token_ids) >= 4
        assert client.complete("abc", CompletionRequest(max_new_tokens=2)).token_ids


class Terminal:
    """`splitpoint chat` in a pseudo terminal."""

    def __init__(self, state: Path, *arguments: str) -> None:
        """state: the folder for the history."""
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "splitpoint", "chat", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(state)},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        """Type like a person: not in the instant between a prompt and the read behind it.

        A signal in that instant is seen by Python only when the read ends.
        """
        time.sleep(0.2)
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str, limit_s: float = 60.0) -> str:
        """What the terminal shows up to and with `pattern`."""
        seen = ""
        end_s = time.monotonic() + limit_s
        while not re.search(pattern, seen):
            left_s = end_s - time.monotonic()
            assert left_s > 0, seen
            if select.select([self._master], [], [], left_s)[0]:
                new = os.read(self._master, 4096).decode("utf-8", "replace")
                seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[>=]", "", new)
        return seen

    def ended(self) -> int:
        try:
            return self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._master)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


ENDLESS = ("--max-new-tokens", "1000000", "--context", "shift", "--ignore-eos")


@pytest.mark.parametrize("end", ["\x03|again.*>|\x03", "/exit\n", "\x04"])
def test_ctrl_c_in_a_terminal_stops_the_answer_and_twice_at_the_prompt_the_chat(
    bench: ModelBench, end: str, tmp_path: Path
) -> None:
    terminal = Terminal(tmp_path, str(bench.chat_bundle(bench.num_layers)), *ENDLESS)
    terminal.wait_for("/help lists.*\n>")
    for question in ("hello\n", "and again\n")[: 2 if end == "\x04" else 1]:
        terminal.type(question)
        terminal.wait_for("(?s).{200}")
        terminal.type("\x03")
        assert "[cancelled]" in terminal.wait_for(r"(?s)\[cancelled\].*\n>")
    first, _, rest = end.partition("|")
    terminal.type(first)
    if rest:
        shows, _, second = rest.rpartition("|")
        terminal.wait_for(f"(?s){shows}")
        terminal.type(second)
    assert terminal.ended() == 0


def test_the_prompt_ends_at_the_second_ctrl_c_and_not_at_one_between_lines() -> None:
    def reader(*events: str | BaseException) -> Callable[[], str]:
        left = list(events)

        def read() -> str:
            event = left.pop(0)
            if isinstance(event, BaseException):
                raise event
            return event

        return read

    ctrl_c = KeyboardInterrupt()

    def entry(*events: str | BaseException) -> str | None:
        return next_entry(PlainLines(reader(*events)))

    assert entry(ctrl_c, " hi ") == "hi"
    assert entry(ctrl_c, ctrl_c) is None
    assert entry(EOFError()) is None
    assert entry("\udcff", "\udcc3\udca9") == "é"
    assert entry('"""', "one", "  two", '"""') == "one\n  two"
    assert entry('"""', "one", EOFError()) == "one"
    assert entry('"""', "one", ctrl_c, "three") == "three"
