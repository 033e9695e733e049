"""Slash commands change the chat, say what they did, and are never sent to the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from splitpoint.chat.saved import SavedChatError
from splitpoint.chat.slash_commands import COMMANDS, ChatState, run_command
from splitpoint.views.terminal_text import shown_text


class Levels:
    """Stands in for a client."""

    level_names = ("lossless", "q2", "q3")

    def check(self, request: CompletionRequest) -> None:
        if request.level not in (*self.level_names, "auto"):
            raise InputError(f"no level {request.level!r}")


@pytest.fixture
def state() -> ChatState:
    state = ChatState(levels=Levels(), request=CompletionRequest())
    state.talk.ask("one")
    state.talk.answered("two", is_open=False)
    return state


def test_help_lists_every_command(state: ChatState) -> None:
    said = "\n".join(run_command("/help", state))
    for command in COMMANDS:
        assert command.name in said
        assert command.summary in said


def test_an_unknown_command_is_answered_with_the_nearest(state: ChatState) -> None:
    assert run_command("/levl q2", state) == ["no command /levl; did you mean /level?"]
    assert run_command("/x\x1b[2J", state) == ["no command /x\ufffd[2J; /help lists them"]
    assert run_command("/clear all", state) == ["/clear takes nothing behind it"]
    assert state.talk.num_questions == 1


def test_the_level_of_the_next_answers_is_checked(state: ChatState) -> None:
    assert "lossless, q2, q3" in run_command("/level", state)[0]
    assert run_command("/level q3", state) == ["level q3 from the next answer on"]
    with pytest.raises(InputError):
        run_command("/level q9", state)
    assert state.request.level == "q3"


def test_the_system_message_is_shown_set_and_removed(state: ChatState) -> None:
    assert run_command("/system", state) == ["system message: none"]
    run_command("/system be  short", state)
    assert run_command("/system", state) == ["system message: be  short"]
    assert run_command("/clear", state) == ["1 questions forgotten; the system message stays"]
    run_command("/system -", state)
    assert state.talk.messages == []


def test_a_conversation_is_saved_loaded_and_saved_again(state: ChatState, tmp_path: Path) -> None:
    assert run_command("/save", state) == ["say where to: /save FILE"]
    assert run_command("/load", state) == ["say from where: /load FILE"]
    path = tmp_path / "with space.json"
    assert run_command(f"/save {path}", state) == [f"saved {path}: 1 questions"]
    assert run_command("/save", state) == [f"replaced {path}: 1 questions"]
    other = tmp_path / "other"
    other.touch()
    with pytest.raises(SavedChatError):
        run_command(f"/save {other}", state)
    for name in ("a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(SavedChatError):
            run_command(f"/load {name}", state)
    assert run_command(f"/save! {other}", state) == [f"replaced {other}: 1 questions"]
    talk = state.talk
    before = list(talk.messages)
    talk.clear()
    talk.ask("x")
    talk.answered("", is_open=True)
    assert run_command(f"/load {path}", state) == [f"loaded {path}: 1 questions, in place of 1"]
    assert (talk.messages, talk.is_open) == (before, False)


def test_a_file_that_cannot_be_loaded_changes_nothing(state: ChatState, tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_text("{}")
    with pytest.raises(SavedChatError):
        run_command(f"/load {path}", state)
    assert (state.talk.num_questions, state.file) == (1, None)


def test_retry_exit_and_statistics(state: ChatState) -> None:
    assert run_command("/stats", state) == ["no answers yet"]
    run_command("/retry", state)
    run_command("/exit", state)
    assert (state.ask_again, state.ended) == (True, True)


def test_a_terminal_is_shown_no_control_characters() -> None:
    assert shown_text("a\tb\r\nc") == "a\tb\nc"
    assert shown_text("\x1b]52;c;eA==\x07\x9b2J") == "\ufffd]52;c;eA==\ufffd\ufffd2J"
