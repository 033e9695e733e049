"""`splitpoint chat`: a conversation in the terminal, tokens shown as they come."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from splitpoint.commands import generation_options as options
from splitpoint.commands.option_groups import BundleArgument, with_options
from splitpoint.commands.run import summary

if TYPE_CHECKING:
    from edge.device.tokenizer import ChatMessage


@with_options(max_new_tokens=512, temperature=0.2, top_p=0.9)
def chat(
    bundle: BundleArgument,
    device: options.DeviceOptions,
    sampling: options.SamplingOptions,
    control: options.ControlOptions,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
) -> None:
    """Talk to the model. An empty line or Ctrl-D ends the conversation."""
    from edge.errors import InputError

    request = options.completion_request(sampling, control)
    messages: list[ChatMessage] = [{"role": "system", "content": system}] if system else []
    with ExitStack() as stack:
        client = device.open_client(stack, bundle)
        while question := _ask():
            messages.append({"role": "user", "content": question})
            try:
                answer = client.start(messages, request)
            except InputError as error:
                typer.echo(f"{error} (start a new conversation, or use --context shift)", err=True)
                break
            for piece in answer:
                typer.echo(piece.text, nl=False)
            typer.echo()
            typer.echo(summary(answer.completion), err=True)
            messages.append({"role": "assistant", "content": answer.completion.text})


def _ask() -> str:
    """The next line of the user; empty at the end of input."""
    try:
        return str(typer.prompt(">", default="", show_default=False, prompt_suffix=" ", err=True))
    except typer.Abort:
        return ""
