"""Lines that are edited on a terminal: history, several lines, completion of commands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings

from splitpoint.chat.slash_commands import COMMANDS

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

_FILE_COMMANDS = ("/save", "/save!", "/load")


class EditedLines:
    """Lines from a terminal, as `splitpoint.chat.plain_lines.Lines`.

    history: the file of earlier lines; None: they are forgotten at the end. level_names: for the
    completion of /level. source, screen: a terminal of a test; None: this process's.
    """

    def __init__(
        self,
        history: Path | None,
        level_names: Sequence[str],
        *,
        source: Input | None = None,
        screen: Output | None = None,
    ) -> None:
        kept: History = InMemoryHistory() if history is None else _KeptLines(os.fspath(history))
        self._session: PromptSession[str] = PromptSession(
            history=kept,
            completer=CommandCompleter(level_names),
            complete_while_typing=False,
            auto_suggest=AutoSuggestFromHistory(),
            multiline=True,
            key_bindings=_keys(),
            prompt_continuation="  ",
            enable_suspend=True,
            input=source,
            output=screen,
        )

    def read(self, prompt: str) -> str:
        """See Lines."""
        return self._session.prompt(prompt)


class _KeptLines(FileHistory):
    """The history in its file. A line that cannot be kept ends no chat."""

    def store_string(self, string: str) -> None:
        """Add an entry; bytes that were no UTF-8 are kept as "?"."""
        with contextlib.suppress(OSError):
            super().store_string(string.encode("utf-8", "replace").decode("utf-8"))


class CommandCompleter(Completer):
    """Completes a command, and behind it a level or a file."""

    def __init__(self, level_names: Sequence[str]) -> None:
        self._levels = ("auto", *level_names)
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """What may stand at the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        word, space, argument = text.partition(" ")
        if not space:
            yield from _beginning_with(word, [command.name for command in COMMANDS])
        elif word == "/level":
            yield from _beginning_with(argument, self._levels)
        elif word in _FILE_COMMANDS:
            yield from self._files.get_completions(Document(argument, len(argument)), event)


def _beginning_with(begun: str, names: Iterable[str]) -> Iterable[Completion]:
    for name in names:
        if name.startswith(begun):
            yield Completion(name, start_position=-len(begun))


def _keys() -> KeyBindings:
    """Return sends; Alt-Return begins a new line. Pasted lines stay together."""
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys
