"""Show one answer as it comes, and keep it in the conversation as far as it came."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import typer

from splitpoint.chat.slash_commands import ChatState
from splitpoint.views.terminal_text import shown_text

if TYPE_CHECKING:
    from edge.client import EdgeClient
    from edge.generation.completion import CompletionRun
    from edge.generation.report import Completion

HOW_TO_RETRY: Final = "(the conversation is kept: Return asks again)"
WITHDRAWN: Final = "(not asked; the rest is kept. --context shift lets a chat outgrow its plan)"


def answer_question(client: EdgeClient, state: ChatState) -> None:
    """Show the answer to the last question and keep it, as far as it came."""
    from edge.errors import EdgeError, InputError

    talk = state.talk
    try:
        answer = client.start(talk.messages, state.request)
        with stopped_by_ctrl_c(answer):
            completion = show_answer(answer)
    except InputError as error:
        talk.withdraw()
        typer.echo(f"{error} {WITHDRAWN}", err=True)
        return
    except EdgeError as error:
        talk.answered("", is_open=True)
        typer.echo(f"{error} {HOW_TO_RETRY}", err=True)
        return
    typer.echo()
    typer.echo(summary(completion), err=True)
    state.statistics.add(completion)
    is_lost = completion.finish_reason == "server_lost"
    was_stopped_early = completion.finish_reason == "cancelled" and not completion.text
    talk.answered(completion.text, is_open=is_lost or was_stopped_early)
    if talk.is_open:
        typer.echo(HOW_TO_RETRY, err=True)


@contextmanager
def stopped_by_ctrl_c(answer: CompletionRun) -> Iterator[None]:
    """While the block lasts, Ctrl-C ends the answer and raises nothing.

    An exception could come anywhere, also where a front is put back. And what waits holds locks
    that cancelling needs, so another thread cancels.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals do not come here
        return

    def stop(number: int, frame: object) -> None:
        threading.Thread(target=answer.cancel, name="chat-stop", daemon=True).start()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def show_answer(answer: CompletionRun, *, silent: bool = False) -> Completion:
    """Print the text of an answer as it comes, and what was held back at its end.

    A terminal gets no control characters; a file or a pipe gets the text as it is.
    """
    is_terminal = sys.stdout.isatty()
    num_shown = 0

    def show(text: str) -> None:
        if text and not silent:
            typer.echo(shown_text(text) if is_terminal else text, nl=False)

    for piece in answer:
        num_shown += len(piece.text)
        show(piece.text)
    show(answer.completion.text[num_shown:])
    return answer.completion


def summary(completion: Completion) -> str:
    """One line for people: how it ended, how fast, how many bytes."""
    figures = completion.to_json()
    line = (
        f"[{completion.finish_reason}] {len(completion.token_ids)} tokens, "
        f"TTFT {1e3 * completion.ttft_s:.0f} ms, "
        f"{_between(completion)}{completion.tokens_per_s:.1f} tokens/s, "
        f"up {figures['uplink_bytes']:,} B, down {figures['downlink_bytes']:,} B, "
        f"{completion.bits_per_element:.2f} bits/element"
    )
    if completion.energy is not None and completion.token_ids:
        each = figures["energy_joules_per_token"]
        line += f", {each:.3g} J/token ({completion.energy.sensor})"
    if completion.reconnects:
        line += f", reconnected {completion.reconnects}x"
    if completion.moves:
        line += f", split moved {completion.moves}x"
    return f"{line}: {completion.finish_detail}" if completion.finish_detail else line


def _between(completion: Completion) -> str:
    """The time between tokens; nothing where most came with the one before, as with drafts."""
    median_s = completion.tbt_quantile_s(0.5)
    return f"TBT {1e3 * median_s:.1f} ms, " if median_s > 0 else ""
