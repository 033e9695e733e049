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

import pytest

from cloud.server.process import ServerConfig
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from optimizer.policy.retry import RetryPolicy
from splitpoint.cli import main
from splitpoint.commands import chat as command
from splitpoint.commands.chat import Conversation
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer

SPLIT = 2


def script(monkeypatch: pytest.MonkeyPatch, *lines: str | Callable[[], str]) -> None:
    """What the user types, line by line, then Ctrl-D. A function is called when its turn comes."""
    left = list(lines)

    def ask() -> str | None:
        if not left:
            return None
        line = left.pop(0)
        return line if isinstance(line, str) else line()

    monkeypatch.setattr(command, "_ask", ask)


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
        with command._stopped_by_ctrl_c(answer):
            for number, _ in enumerate(answer):
                if number == 3:
                    signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is handler
        assert answer.completion.finish_reason == "cancelled"
        assert len(answer.completion.token_ids) >= 4
        assert client.complete("abc", CompletionRequest(max_new_tokens=2)).token_ids


class Terminal:
    """`splitpoint chat` in a pseudo terminal."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "splitpoint", "chat", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
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
                seen += os.read(self._master, 4096).decode("utf-8", "replace")
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


@pytest.mark.parametrize("end", ["\x03|again.*> |\x03", "/exit\n", "\x04"])
def test_ctrl_c_in_a_terminal_stops_the_answer_and_twice_at_the_prompt_the_chat(
    bench: ModelBench, end: str
) -> None:
    terminal = Terminal(str(bench.chat_bundle(bench.num_layers)), *ENDLESS)
    terminal.wait_for("> ")
    for question in ("hello\n", "and again\n")[: 2 if end == "\x04" else 1]:
        terminal.type(question)
        terminal.wait_for("(?s).{200}")
        terminal.type("\x03")
        assert "[cancelled]" in terminal.wait_for(r"(?s)\[cancelled\].*> ")
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
    assert command._ask(reader(ctrl_c, " hi ")) == "hi"
    assert command._ask(reader(ctrl_c, ctrl_c)) is None
    assert command._ask(reader(EOFError())) is None
    assert command._ask(reader("\udcff", "\udcc3\udca9")) == "é"


def test_a_conversation_keeps_partial_answers_and_replaces_unanswered_questions() -> None:
    talk = Conversation()
    talk.ask("one")
    talk.answered("half", is_open=False)  # stopped by the user
    assert not talk.ask_again()
    talk.ask("two")
    talk.answered("", is_open=True)  # the server was not there
    assert talk.ask_again()
    talk.answered("lost half", is_open=True)  # lost in the middle
    assert talk.ask_again()
    assert [message["content"] for message in talk.messages] == ["one", "half", "two"]
    talk.ask("three")
    assert [message["content"] for message in talk.messages] == ["one", "half", "three"]
    talk.answered("", is_open=False)  # the model had nothing to say
    assert not talk.ask_again()
    assert talk.messages[-1] == {"role": "assistant", "content": ""}
