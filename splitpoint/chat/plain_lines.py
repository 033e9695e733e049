"""Lines of the user, and how they are read where there is no terminal to edit them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import typer

from splitpoint.text_input import text_argument

HOW_TO_END: Final = "(Ctrl-C again, Ctrl-D or /exit ends the chat)"
BLOCK: Final = '"""'


class Lines(Protocol):
    """Where the user's lines come from."""

    def read(self, prompt: str) -> str:
        """One line, or several where the user can write several.

        Raises EOFError at the end, and KeyboardInterrupt for Ctrl-C.
        """
        ...


class PlainLines:
    """Lines of standard input, with the prompt on standard error."""

    def __init__(self, read: Callable[[], str] = input) -> None:
        self._read = read

    def read(self, prompt: str) -> str:
        """See Lines."""
        typer.echo(prompt, nl=False, err=True)
        return self._read()


def next_entry(lines: Lines) -> str | None:
    """The user's next entry, without spaces around it; None at the end of the chat.

    A line that is three double quotes begins a text of several lines, and the next such line ends
    it. The second Ctrl-C in a row ends the chat; the first one only drops what was typed.
    """
    was_interrupted = False
    while True:
        try:
            entry = text_argument(lines.read("> ").strip(), "this line")
            return _block(lines) if entry == BLOCK else entry
        except EOFError:
            typer.echo(err=True)
            return None
        except typer.BadParameter as error:
            typer.echo(error.format_message(), err=True)
        except KeyboardInterrupt:
            typer.echo(err=True)
            if was_interrupted:
                return None
            was_interrupted = True
            typer.echo(HOW_TO_END, err=True)


def _block(lines: Lines) -> str:
    """The lines up to the closing quotes, or to the end of the input."""
    found: list[str] = []
    while True:
        try:
            line = text_argument(lines.read("... "), "this line")
        except EOFError:
            break
        if line.strip() == BLOCK:
            break
        found.append(line)
    return "\n".join(found).strip()
