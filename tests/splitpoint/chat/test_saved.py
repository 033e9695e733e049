"""Saved conversations come back as they were; files of others are checked; none is overwritten."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from splitpoint.chat.conversation import Conversation
from splitpoint.chat.saved import FORMAT, MAX_BYTES, SavedChatError, load, save


def talk_of(*texts: str, is_open: bool = False) -> Conversation:
    talk = Conversation(is_open=is_open)
    talk.set_system("be short")
    for index, text in enumerate(texts):
        talk.messages.append({"role": ("user", "assistant")[index % 2], "content": text})
    return talk


@pytest.mark.parametrize(
    "talk", [Conversation(), talk_of("1", "é\n\x1b"), talk_of("1", is_open=True)]
)
def test_a_conversation_comes_back_as_it_was(talk: Conversation, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert save(path, talk, replace=False) is False
    assert load(path) == talk
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_a_file_is_replaced_only_when_that_was_said(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("mine")
    with pytest.raises(SavedChatError, match="is there already: /save! "):
        save(path, talk_of("1"), replace=False)
    assert path.read_text() == "mine"
    assert save(path, talk_of("1"), replace=True) is True
    with pytest.raises(SavedChatError, match="is no file"):
        save(tmp_path, talk_of("1"), replace=True)
    with pytest.raises(SavedChatError, match="No such file"):
        save(tmp_path / "no" / "a.json", talk_of("1"), replace=False)


def saved(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    return {"format": FORMAT, "version": 1, "open": False, "messages": messages} | changes


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "no conversation that /save wrote"),
        ({"messages": []}, "no conversation that /save wrote"),
        (saved(version=2), "version '2' is not known here"),
        (saved(more=1), "its keys must be"),
        (saved(open=1), "open true or false"),
        (saved(messages="user"), "messages must be a list"),
        (saved(messages=[{"role": "user"}]), "message 0 must have a role and a content"),
        (saved(messages=[{"role": "root", "content": "1"}]), "must be user or system"),
        (saved(messages=[{"role": "assistant", "content": "1"}]), "must be user or system"),
        (saved(messages=[{"role": "user", "content": 7}]), "message 0 must be text"),
        (saved(messages=[{"role": "user", "content": "1"}]), "has no answer, and is not open"),
        (saved(messages=[{"role": "user", "content": "1"}] * 2), "message 1: its role must be"),
        (saved(messages=[{"role": ["user"], "content": "1"}]), "its role must be"),
        (saved(messages=[], open=True), "open, without a question"),
        (saved(messages=[{}] * 10_001), "10001 messages, at most"),
    ],
)
def test_what_no_chat_wrote_is_refused_in_one_line(value: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    with pytest.raises(SavedChatError) as caught:
        load(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_json_or_too_large_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"", b"{", b"\xff", b"[" * 10_000, b" " * (MAX_BYTES + 1)):
        path.write_bytes(content)
        with pytest.raises(SavedChatError):
            load(path)
    half = json.dumps(saved(messages=[{"role": "user", "content": "\ud83d"}], open=True))
    path.write_text(half)
    with pytest.raises(SavedChatError, match="surrogate"):
        load(path)
    with pytest.raises(SavedChatError, match="No such file"):
        load(tmp_path / "none")
