"""`splitpoint chat`: a conversation in the terminal, tokens shown as they come.

The conversation outlives what goes wrong in it: an answer that the user stops, and a server that is
lost, full or not there.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

import typer

from splitpoint.commands import generation_options as options
from splitpoint.commands.option_groups import BundleArgument, with_options
from splitpoint.commands.run import shown, summary
from splitpoint.text_input import text_argument

if TYPE_CHECKING:
    from edge.client import EdgeClient
    from edge.device.tokenizer import ChatMessage
    from edge.generation.completion import CompletionRequest, CompletionRun

EXIT: Final = "/exit"
RETRY: Final = "/retry"
HOW_TO_RETRY: Final = "(the conversation is kept: Return asks again)"
WITHDRAWN: Final = "(not asked; the rest is kept. --context shift lets a chat outgrow its plan)"
HOW_TO_END: Final = f"(Ctrl-C again, Ctrl-D or {EXIT} ends the chat)"


@with_options(max_new_tokens=512, temperature=0.2, top_p=0.9)
def chat(
    bundle: BundleArgument,
    device: options.DeviceOptions,
    sampling: options.SamplingOptions,
    control: options.ControlOptions,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
) -> None:
    """Talk to the model. Ctrl-C stops an answer. /exit, Ctrl-D or Ctrl-C twice ends the chat."""
    request = options.completion_request(sampling, control)
    talk = Conversation()
    if system:
        talk.messages.append({"role": "system", "content": text_argument(system, "--system")})
    with ExitStack() as stack:
        client = device.open_client(stack, bundle, keep_connected=True)
        while (line := _ask()) is not None and line != EXIT:
            if line not in ("", RETRY):
                talk.ask(line)
            elif not talk.ask_again():
                if line == RETRY:
                    typer.echo("(every question has its answer)", err=True)
                continue
            _answer(client, talk, request)


@dataclass(slots=True, kw_only=True)
class Conversation:
    """The messages so far. `is_open`: the last question can be asked again."""

    messages: list[ChatMessage] = field(default_factory=list)
    is_open: bool = False

    def ask(self, question: str) -> None:
        """Add a question. It takes the place of one that got no answer at all."""
        self._drop_last("user")
        self.messages.append({"role": "user", "content": question})

    def ask_again(self) -> bool:
        """Make the last question the end of the conversation; False when it has its answer."""
        if self.is_open:
            self._drop_last("assistant")
        return self.is_open

    def answered(self, text: str, *, is_open: bool) -> None:
        """Add an answer, which may be a part of one. An open one without text adds nothing."""
        if text or not is_open:
            self.messages.append({"role": "assistant", "content": text})
        self.is_open = is_open

    def withdraw(self) -> None:
        """Forget the last question: it cannot be asked."""
        self._drop_last("user")
        self.is_open = False

    def _drop_last(self, role: str) -> None:
        if self.messages and self.messages[-1]["role"] == role:
            self.messages.pop()


def _answer(client: EdgeClient, talk: Conversation, request: CompletionRequest) -> None:
    """Show the answer to the last question and keep it, as far as it came."""
    from edge.errors import EdgeError, InputError

    try:
        answer = client.start(talk.messages, request)
        with _stopped_by_ctrl_c(answer):
            completion = shown(answer)
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
    is_lost = completion.finish_reason == "server_lost"
    was_stopped_early = completion.finish_reason == "cancelled" and not completion.text
    talk.answered(completion.text, is_open=is_lost or was_stopped_early)
    if talk.is_open:
        typer.echo(HOW_TO_RETRY, err=True)


@contextmanager
def _stopped_by_ctrl_c(answer: CompletionRun) -> Iterator[None]:
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


def _ask(read: Callable[[], str] = input) -> str | None:
    """The user's next line, without spaces around it; None at the end of the chat."""
    was_interrupted = False
    while True:
        try:
            typer.echo("> ", nl=False, err=True)
            return text_argument(read().strip(), "this line")
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
