"""Lines on a terminal: Return sends, Alt-Return goes on, earlier lines come back, Tab completes."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from splitpoint.chat.edited_lines import CommandCompleter, EditedLines
from splitpoint.chat.history_file import MAX_BYTES, history_file

UP = "\x1b[A"


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


def lines_of(keyboard: PipeInput, history: Path | None = None) -> EditedLines:
    return EditedLines(history, ("lossless", "q2"), source=keyboard, screen=DummyOutput())


def test_return_sends_and_alt_return_begins_a_new_line(keyboard: PipeInput) -> None:
    keyboard.send_text("one\x1b\rtwo\r")
    assert lines_of(keyboard).read("> ") == "one\ntwo"


def test_pasted_lines_stay_together(keyboard: PipeInput) -> None:
    keyboard.send_text("\x1b[200~one\rtwo\x1b[201~\r")
    assert lines_of(keyboard).read("> ") == "one\ntwo"


def test_ctrl_c_and_ctrl_d_are_told_apart(keyboard: PipeInput) -> None:
    lines = lines_of(keyboard)
    keyboard.send_text("half\x03")
    with pytest.raises(KeyboardInterrupt):
        lines.read("> ")
    keyboard.send_text("\x04")
    with pytest.raises(EOFError):
        lines.read("> ")


def test_lines_of_an_earlier_chat_come_back(
    keyboard: PipeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = history_file()
    keyboard.send_text("first question\r")
    assert lines_of(keyboard, path).read("> ") == "first question"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    keyboard.send_text(UP + "?\r")
    assert lines_of(keyboard, history_file()).read("> ") == "first question?"


def test_a_line_that_cannot_be_kept_is_answered_all_the_same(
    keyboard: PipeInput, tmp_path: Path
) -> None:
    keyboard.send_bytes(b"caf\xe9\r")  # Latin-1 on a UTF-8 terminal
    assert lines_of(keyboard, tmp_path / "history").read("> ") == "caf\udce9"
    keyboard.send_text("two\r")
    assert lines_of(keyboard, tmp_path / "no" / "folder").read("> ") == "two"


def test_the_history_is_open_to_nobody_else_and_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = history_file()
    path.chmod(0o644)
    entry = b"\n# 2026-01-01 00:00:00\n+line\n"
    path.write_bytes(entry * (MAX_BYTES // len(entry) + 10))
    history_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_bytes()
    assert 0 < len(kept) <= MAX_BYTES // 2
    assert kept == entry * (len(kept) // len(entry))


def test_a_link_in_place_of_the_history_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = tmp_path / "splitpoint"
    folder.mkdir()
    (tmp_path / "other").write_text("x")
    (folder / "chat-history").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic link"):
        history_file()
    assert (tmp_path / "other").read_text() == "x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/le", ["/level"]),
        ("/sa", ["/save", "/save!"]),
        ("/level q", ["q2"]),
        ("/level ", ["auto", "lossless", "q2"]),
        ("hello /le", []),
        ("/clear x", []),
    ],
)
def test_commands_and_levels_are_completed(text: str, expected: list[str]) -> None:
    completer = CommandCompleter(("lossless", "q2"))
    found = completer.get_completions(Document(text, len(text)), CompleteEvent())
    assert [one.text for one in found] == expected


def test_files_are_completed(tmp_path: Path) -> None:
    (tmp_path / "talk.json").touch()
    text = f"/load {tmp_path}/ta"
    found = CommandCompleter(()).get_completions(Document(text, len(text)), CompleteEvent())
    assert [one.text for one in found] == ["lk.json"]
