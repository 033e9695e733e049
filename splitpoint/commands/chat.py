"""`splitpoint chat`: a conversation in the terminal, tokens shown as they come."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from splitpoint.commands import generation_options as options
from splitpoint.commands.run import summary

if TYPE_CHECKING:
    from edge.tokenizer import ChatMessage


def chat(
    bundle: options.BundleArgument,
    server: options.ServerOption = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_new_tokens: options.MaxNewTokensOption = 512,
    temperature: options.TemperatureOption = 0.2,
    top_p: options.TopPOption = 0.9,
    top_k: options.TopKOption = 0,
    min_p: options.MinPOption = 0.0,
    repetition_penalty: options.PenaltyOption = 1.0,
    seed: options.SeedOption = 0,
    stop: options.StopOption = None,
    level: options.LevelOption = "auto",
    draft: options.DraftOption = "auto",
    threads: options.ThreadsOption = None,
    tls_ca: options.CaOption = None,
    tls_cert: options.CertOption = None,
    tls_key: options.KeyOption = None,
    token_file: options.TokenFileOption = None,
    trace: options.TraceOption = None,
) -> None:
    """Talk to the model. An empty line or Ctrl-D ends the conversation."""
    sampling = options.sampling_params(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    from edge.completion import CompletionRequest
    from edge.errors import InputError

    request = CompletionRequest(
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=tuple(stop or ()),
        level=level,
        draft=draft,
    )
    messages: list[ChatMessage] = [{"role": "system", "content": system}] if system else []
    with ExitStack() as stack:
        client = options.open_client(
            stack,
            bundle,
            server,
            threads=threads,
            ca=tls_ca,
            cert=tls_cert,
            key=tls_key,
            token_file=token_file,
            trace=trace,
        )
        while question := _ask():
            messages.append({"role": "user", "content": question})
            try:
                answer = client.start(messages, request)
            except InputError as error:
                typer.echo(f"{error} (start a new conversation)", err=True)
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
