"""What a caller hands in as text, checked once: a str that UTF-8 can carry.

Python strings may hold halves of surrogate pairs: from JSON such as "\\\\ud83d", and from arguments
and files that are not UTF-8 (PEP 383). No tokenizer, file or message takes them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edge.errors import InputError

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def check_text(text: str, what: str) -> str:
    """`text` as it is. InputError naming `what` when it is no text that UTF-8 can carry."""
    if not isinstance(text, str):
        raise InputError(f"{what} must be text, not {type(text).__name__}")
    if (found := surrogate_in(text)) is not None:
        raise InputError(
            f"{what}: character {found} is half of a surrogate pair (U+{ord(text[found]):04X}), "
            "which is no text: send the whole character"
        )
    return text


def surrogate_in(text: str) -> int | None:
    """Where the first half of a surrogate pair stands; None when there is none."""
    if text.isascii():
        return None
    found = _SURROGATE.search(text)
    return None if found is None else found.start()


def check_token(token: str, what: str) -> str:
    """An access token as it is. InputError naming `what` when no HTTP header carries it.

    Visible ASCII only, as for bearer tokens (RFC 6750, section 2.1).
    """
    if not token:
        raise InputError(f"{what}: the access token is empty")
    for index, letter in enumerate(token):
        if not "!" <= letter <= "~":
            raise InputError(
                f"{what}: character {index} of the access token is U+{ord(letter):04X}; it may "
                "have visible ASCII characters only"
            )
    return token


def utf8_path(path: Path) -> str:
    """A path for libraries that write it as UTF-8, whatever the locale's encoding.

    InputError for a path whose bytes are no UTF-8.
    """
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeError as error:
        raise InputError(f"{path!s}: rename it, its path is not UTF-8") from error


def conversation_texts(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[str]:
    """All texts of a conversation, checked; tool calls and tools as JSON. InputError as above."""
    texts = []
    for index, message in enumerate(messages):
        check_text(message["role"], f"the role of message {index}")
        check_text(message["content"], f"message {index}")
        texts.append(message["content"])
        if message.get("tool_calls"):
            texts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    if tools:
        texts.append(json.dumps(list(tools), ensure_ascii=False))
    return texts
