"""`splitpoint run`: one prompt through edge and cloud, the text as it comes, the costs after."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer

from splitpoint.commands import generation_options as options
from splitpoint.commands.connection_options import BundleOptions
from splitpoint.commands.measure_options import ExplainOptions
from splitpoint.commands.option_groups import JsonOption, with_options
from splitpoint.text_input import read_standard_input, read_text, text_argument
from splitpoint.views.output import print_json

if TYPE_CHECKING:
    from edge.device.tokenizer import ChatMessage

STANDARD_INPUT: Final = "-"


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """What the model is asked: exactly one of these. "-" stands for standard input."""

    PANEL: ClassVar = "Question (one of these; - reads standard input)"

    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="Plain text to continue, as --prompt; - reads standard input."
        ),
    ] = None
    prompt: Annotated[str | None, typer.Option(help="Plain text to continue.")] = None
    prompt_file: Annotated[Path | None, typer.Option(help="File with the prompt.")] = None
    chat: Annotated[
        str | None, typer.Option(help="A user's message, put through the chat template.")
    ] = None

    def question(self) -> str | list[ChatMessage]:
        """A text to continue, or messages; BadParameter unless exactly one was given."""
        choices = (self.text, self.prompt, self.prompt_file, self.chat)
        if sum(item is not None for item in choices) != 1:
            raise typer.BadParameter(
                "give exactly one of --prompt, --prompt-file and --chat, or - to read standard "
                "input"
            )
        if self.chat is not None:
            return [{"role": "user", "content": _text_of(self.chat, "--chat")}]
        if self.prompt_file is not None and str(self.prompt_file) != STANDARD_INPUT:
            return read_text(self.prompt_file)
        plain = self.text if self.prompt is None else self.prompt
        return _text_of(STANDARD_INPUT if plain is None else plain, "--prompt")


def _text_of(value: str, option: str) -> str:
    """An option's text; what standard input brings for "-"."""
    return read_standard_input() if value == STANDARD_INPUT else text_argument(value, option)


@with_options()
def run(
    place: BundleOptions,
    ask: QuestionOptions,
    device: options.DeviceOptions,
    sampling: options.SamplingOptions,
    control: options.ControlOptions,
    measured: ExplainOptions,
    logprobs: Annotated[bool, typer.Option(help="Report the tokens' log-probabilities.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run one prompt across the split."""
    device.check()
    measured.check()
    if str(place.bundle) == STANDARD_INPUT and ask.text is None:  # the only word is the question
        place, ask = replace(place, bundle=None), replace(ask, text=STANDARD_INPUT)
    question = ask.question()
    request = options.completion_request(sampling, control, logprobs=logprobs)
    from splitpoint.chat.answering import show_answer, summary
    from splitpoint.views.measured_view import explained_json

    bundle = place.folder(device, device.addresses())
    with ExitStack() as stack:
        client = measured.open_client(
            device, stack, bundle, program="run", is_watched=sys.stderr.isatty()
        )
        basis = measured.basis(client, bundle)
        answer = client.start(question, request)
        completion = show_answer(answer, silent=as_json)
    explained = measured.compared(completion, client, basis)
    if as_json:
        beside = explained_json(explained) if measured.explain else {}
        front = client.front_report.to_json()
        print_json({**completion.to_json(), "front": front, **beside})
    else:
        typer.echo()
        typer.echo(summary(completion), err=True)
        measured.show(explained)
        if isinstance(question, str) and client.tokenizer.template:
            typer.echo("continued as plain text; to ask this model, use --chat TEXT", err=True)
    if completion.finish_reason == "server_lost":
        raise typer.Exit(1)  # what had come is printed; a script has to know that there is more
