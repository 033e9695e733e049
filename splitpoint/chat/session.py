"""The loop of a chat: an entry, what it does, and the next one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import typer

from splitpoint.chat.answering import answer_question
from splitpoint.chat.history_file import history_file
from splitpoint.chat.plain_lines import Lines, PlainLines, next_entry
from splitpoint.chat.slash_commands import ChatState, run_command

if TYPE_CHECKING:
    from edge.client import EdgeClient

WELCOME: Final = "(/help lists the commands; Ctrl-C stops an answer)"


def talk_until_the_end(client: EdgeClient, state: ChatState, lines: Lines) -> None:
    """Take entries and answer them until the user ends the chat."""
    from edge.errors import InputError

    while not state.ended and (entry := next_entry(lines)) is not None:
        if entry.startswith("/"):
            try:
                said = run_command(entry, state)
            except InputError as error:
                said = [str(error)]
            for line in said:
                typer.echo(line if line.startswith("/") else f"({line})", err=True)
        elif entry:
            state.talk.ask(entry)
            answer_question(client, state)
            continue
        _ask_again(client, state, is_wanted=state.ask_again or not entry)
        state.ask_again = False


def _ask_again(client: EdgeClient, state: ChatState, *, is_wanted: bool) -> None:
    """Ask the last question again where that was wanted and it has no whole answer."""
    if not is_wanted:
        return
    if state.talk.ask_again():
        answer_question(client, state)
    elif state.ask_again:
        typer.echo("(every question has its answer)", err=True)


def open_lines(level_names: tuple[str, ...], *, keep_history: bool) -> Lines:
    """Lines to edit where both ends are a terminal; else lines of standard input.

    keep_history: in a file, of the user's alone. Without that file, or without the package that
    edits lines, the chat goes on without them and says so.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return PlainLines()
    try:
        from splitpoint.chat.edited_lines import EditedLines
    except ModuleNotFoundError:
        typer.echo("(no line editing: pip install 'splitpoint[edge]' brings it)", err=True)
        return PlainLines()
    history = None
    if keep_history:
        try:
            history = history_file()
        except OSError as error:
            typer.echo(f"(lines are not kept: {error})", err=True)
    typer.echo(WELCOME, err=True)
    return EditedLines(history, level_names)
