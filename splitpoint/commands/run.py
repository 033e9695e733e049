"""`splitpoint run`: one prompt through edge and cloud, the text as it comes, the costs after."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from splitpoint.commands import generation_options as options
from splitpoint.commands.option_groups import BundleArgument, JsonOption, with_options
from splitpoint.text_input import read_text, text_argument
from splitpoint.views.output import print_json

if TYPE_CHECKING:
    from edge.device.tokenizer import ChatMessage
    from edge.generation.completion import CompletionRun
    from edge.generation.report import Completion


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """What the model is asked: exactly one of the three."""

    PANEL: ClassVar = "Question (one of these)"

    prompt: Annotated[str | None, typer.Option(help="Plain text to continue.")] = None
    prompt_file: Annotated[Path | None, typer.Option(help="File with the prompt.")] = None
    chat: Annotated[
        str | None, typer.Option(help="A user's message, put through the chat template.")
    ] = None

    def question(self) -> str | list[ChatMessage]:
        """A text to continue, or messages; BadParameter unless exactly one was given."""
        given = [item for item in (self.prompt, self.prompt_file, self.chat) if item is not None]
        if len(given) != 1:
            raise typer.BadParameter("give exactly one of --prompt, --prompt-file and --chat")
        if self.chat is not None:
            return [{"role": "user", "content": text_argument(self.chat, "--chat")}]
        if self.prompt_file is not None:
            return read_text(self.prompt_file)
        return text_argument(self.prompt or "", "--prompt")


@with_options()
def run(
    bundle: BundleArgument,
    ask: QuestionOptions,
    device: options.DeviceOptions,
    sampling: options.SamplingOptions,
    control: options.ControlOptions,
    logprobs: Annotated[bool, typer.Option(help="Report the tokens' log-probabilities.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run one prompt across the split."""
    question = ask.question()
    request = options.completion_request(sampling, control, logprobs=logprobs)
    with ExitStack() as stack:
        client = device.open_client(stack, bundle)
        answer = client.start(question, request)
        completion = shown(answer, silent=as_json)
    if as_json:
        print_json(completion.to_json())
    else:
        typer.echo()
        typer.echo(summary(completion), err=True)


def shown(answer: CompletionRun, *, silent: bool = False) -> Completion:
    """Print the text of an answer as it comes, and what was held back at its end."""
    num_shown = 0
    for piece in answer:
        num_shown += len(piece.text)
        if not silent:
            typer.echo(piece.text, nl=False)
    if not silent:
        typer.echo(answer.completion.text[num_shown:], nl=False)
    return answer.completion


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
