"""Text that people write for a command: files and arguments, UTF-8 whatever the locale says."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import typer

from edge.errors import InputError
from edge.text_input import check_token, surrogate_in
from hwprofiles.schema.utf8 import NotUtf8Error, utf8_text

MAX_INPUT_BYTES: Final = 64 << 20


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark and with "\\n" as line ends.

    InputError naming the file and the first byte that is not UTF-8; OSError when it is unreadable.
    """
    try:
        text = utf8_text(path.read_bytes())
    except NotUtf8Error as error:
        raise InputError(f"{path}: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_standard_input() -> str:
    """All of standard input as text, as `read_text` reads a file.

    Says on a terminal how to end it. InputError for what is no UTF-8, or longer than any prompt.
    """
    if sys.stdin.isatty():
        typer.echo("(reading standard input; Ctrl-D ends it)", err=True)
    data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise InputError(f"standard input: longer than {MAX_INPUT_BYTES >> 20} MiB")
    try:
        text = utf8_text(data)
    except NotUtf8Error as error:
        raise InputError(f"standard input: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_token(path: Path) -> str:
    """The access token: the file's only line. InputError for what no HTTP header carries."""
    token = read_text(path).strip()
    if not token or len(token.split()) != 1:
        raise InputError(f"{path}: must hold one access token and nothing else")
    return check_token(token, str(path))


def text_argument(value: str, option: str) -> str:
    """An option's text, or a line of the terminal. BadParameter when its bytes are not UTF-8.

    Python reads both in the locale's encoding and keeps what does not fit as surrogates (PEP 383).
    Under an ASCII locale that is every other character, so the bytes are read anew here.
    """
    if surrogate_in(value) is None:
        return value
    try:
        return os.fsencode(value).decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        reason = f"not UTF-8 (byte 0x{byte:02x} at offset {error.start})"
    except UnicodeEncodeError:  # surrogates that do not stand for bytes
        reason = "not UTF-8 (half of a surrogate pair)"
    raise typer.BadParameter(f"{option}: {reason}: give the text as UTF-8, or in a file")


def accept_any_text() -> None:
    """Let no character end a command: show what the terminal cannot as '?', read what it can.

    Standard error keeps Python's own escapes. Bytes on standard input that do not fit the locale
    arrive as surrogates, for `text_argument`.
    """
    for stream, errors in ((sys.stdout, "replace"), (sys.stdin, "surrogateescape")):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=errors)
