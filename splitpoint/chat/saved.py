"""A conversation in a file: JSON that is written whole or not at all, and checked when it is read.

    {"format": "splitpoint chat", "version": 1, "open": false,
     "messages": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."}, ...]}

A file may come from anybody. Its size, its keys, its roles and their order are checked.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

from edge.errors import InputError
from edge.text_input import check_text
from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json
from splitpoint.chat.conversation import Conversation

FORMAT: Final = "splitpoint chat"
VERSION: Final = 1
MAX_BYTES: Final = 16 << 20
MAX_MESSAGES: Final = 10_000
_KEYS: Final = frozenset({"format", "version", "open", "messages"})


class SavedChatError(InputError):
    """A saved conversation that cannot be read or written: one line, for the user."""


def save(path: Path, talk: Conversation, *, replace: bool) -> bool:
    """Write the conversation, readable by its owner only. Returns whether a file was replaced.

    Raises SavedChatError for a file that is there already unless `replace`, and where nothing can
    be written.
    """
    was_there = os.path.lexists(path)
    if was_there and not replace:
        raise SavedChatError(f"{path} is there already: /save! {path} replaces it")
    if was_there and not path.is_file():
        raise SavedChatError(f"{path} is no file")
    value = {
        "format": FORMAT,
        "version": VERSION,
        "open": talk.is_open,
        "messages": talk.messages,
    }
    try:
        # Its own file first, so that what was there stays whole when the disk is full.
        number, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as stream:
                json.dump(value, stream, ensure_ascii=False, indent=1)
                stream.write("\n")
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise SavedChatError(f"{path}: {error.strerror}") from error
    return was_there


def load(path: Path) -> Conversation:
    """Read a conversation. SavedChatError, naming the file, for anything else."""
    try:
        value = read_json(path, max_bytes=MAX_BYTES)
    except ProfileError as error:
        raise SavedChatError(str(error)) from error
    try:
        return _conversation(value)
    except (InputError, ValueError) as error:
        raise SavedChatError(f"{path}: {error}") from error


def _conversation(value: Any) -> Conversation:
    """The conversation of a file's value. ValueError or InputError for one that is none."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError("no conversation that /save wrote")
    if value.get("version") != VERSION:
        raise ValueError(f"version {str(value.get('version'))[:20]!r} is not known here")
    if set(value) != _KEYS:
        raise ValueError(f"its keys must be {', '.join(sorted(_KEYS))}")
    messages, is_open = value["messages"], value["open"]
    if not isinstance(messages, list) or not isinstance(is_open, bool):
        raise ValueError("messages must be a list, and open true or false")
    if len(messages) > MAX_MESSAGES:
        raise ValueError(f"{len(messages)} messages, at most {MAX_MESSAGES}")
    talk = Conversation(is_open=is_open)
    before = "assistant"  # of which a question may follow
    for index, message in enumerate(messages):
        _check_message(index, message, before)
        before = "assistant" if message["role"] == "system" else message["role"]
        talk.messages.append({"role": message["role"], "content": message["content"]})
    if before == "user" and not is_open:
        raise ValueError("the last question has no answer, and is not open")
    if is_open and not talk.num_questions:
        raise ValueError("open, without a question")
    return talk


def _check_message(index: int, message: Any, before: str) -> None:
    """ValueError or InputError for a message that cannot follow one of the role `before`."""
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise ValueError(f"message {index} must have a role and a content, and nothing else")
    check_text(message["content"], f"message {index}")
    allowed = ["user"] if before == "assistant" else ["assistant"]
    if index == 0:
        allowed.append("system")
    if message["role"] not in allowed:
        raise ValueError(f"message {index}: its role must be {' or '.join(allowed)}")
