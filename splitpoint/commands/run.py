"""`splitpoint run`: one prompt through edge and cloud, the text as it comes, the costs after."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitpoint.commands import generation_options as options
from splitpoint.commands.option_groups import with_options

if TYPE_CHECKING:
    from edge.device.tokenizer import ChatMessage
    from edge.generation.report import Completion


@with_options()
def run(
    bundle: options.BundleArgument,
    device: options.DeviceOptions,
    sampling: options.SamplingOptions,
    control: options.ControlOptions,
    prompt: Annotated[str | None, typer.Option(help="Plain text to continue.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="File with the prompt.")] = None,
    chat: Annotated[
        str | None, typer.Option(help="A user's message, put through the chat template.")
    ] = None,
    logprobs: Annotated[bool, typer.Option(help="Report the tokens' log-probabilities.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run one prompt across the split."""
    question = _question(prompt, prompt_file, chat)
    request = options.completion_request(sampling, control, logprobs=logprobs)
    with ExitStack() as stack:
        client = device.open_client(stack, bundle)
        answer = client.start(question, request)
        for piece in answer:
            if not as_json:
                typer.echo(piece.text, nl=False)
        completion = answer.completion
    if as_json:
        typer.echo(json.dumps(completion.to_json()))
    else:
        typer.echo()
        typer.echo(summary(completion), err=True)


def summary(completion: Completion) -> str:
    """One line for people: how it ended, how fast, how many bytes."""
    figures = completion.to_json()
    line = (
        f"[{completion.finish_reason}] {len(completion.token_ids)} tokens, "
        f"TTFT {1e3 * completion.ttft_s:.0f} ms, "
        f"TBT {1e3 * completion.tbt_quantile_s(0.5):.1f} ms, "
        f"{completion.tokens_per_s:.1f} tokens/s, "
        f"up {figures['uplink_bytes']:,} B, down {figures['downlink_bytes']:,} B, "
        f"{completion.bits_per_element:.2f} bits/element"
    )
    return f"{line}: {completion.finish_detail}" if completion.finish_detail else line


def _question(
    prompt: str | None, prompt_file: Path | None, chat: str | None
) -> str | list[ChatMessage]:
    given = [value for value in (prompt, prompt_file, chat) if value is not None]
    if len(given) != 1:
        raise typer.BadParameter("give exactly one of --prompt, --prompt-file and --chat")
    if chat is not None:
        return [{"role": "user", "content": chat}]
    if prompt_file is not None:
        return prompt_file.read_text()
    return prompt or ""
