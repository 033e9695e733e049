"""`splitpoint train-draft`: train the drafting head of a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer

from splitpoint.commands.choices import DEVICES, completed, one_of
from splitpoint.commands.option_groups import (
    DeviceOption,
    JsonOption,
    SourceOptions,
    compute_device,
    with_options,
)
from splitpoint.text_input import read_text
from splitpoint.views.long_work import long_work
from splitpoint.views.output import print_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from optimizer.artifacts.plan import Plan
    from optimizer.export.draft_head.shards import FrontRows

PLACES: Final = ("edge", "cloud")
# About how long each takes.
STAGE_COSTS: Final = {
    "writing the corpus": 70,
    "choosing the vocabulary": 1,
    "training": 28,
    "writing the head": 1,
}


@dataclass(frozen=True, kw_only=True)
class DraftHeadOptions:
    """Size and training of the head."""

    PANEL: ClassVar = "Draft head"

    place: Annotated[
        str,
        typer.Option(
            help="edge: a head that reads the front's state. cloud: a head of the server, which "
            "reads the model's last state.",
            autocompletion=completed(PLACES),
        ),
    ] = "edge"
    vocabulary: Annotated[int, typer.Option(help="Tokens that the head knows.", min=64)] = 8192
    blocks: Annotated[int, typer.Option(help="MLP blocks of the adapter.", min=0, max=8)] = 2
    inner: Annotated[int, typer.Option(help="Channels inside a block.", min=32)] = 1024
    head_bits: Annotated[
        int, typer.Option(help="4 or 8: of the exported head; 4 is half the size.")
    ] = 8
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="UTF-8 file with a question a line, of the kind that the model is asked; half of "
            "the corpus answers them. For --place cloud."
        ),
    ] = None
    epochs: Annotated[int, typer.Option(help="Passes over the corpus.", min=1)] = 6
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Step size of the optimizer (default: 0.001, for the cloud 0.0003).", min=1e-6
        ),
    ] = None

    def rate(self, default: float) -> float:
        """The learning rate that was asked for, or `default`."""
        return default if self.learning_rate is None else self.learning_rate

    def check(self, text: Path | None, device: str) -> None:
        """BadParameter for bits, a place or a device that there is not, and for what a head of the
        cloud has not."""
        one_of(device, DEVICES, "--device")
        if self.head_bits not in (4, 8):
            raise typer.BadParameter("must be 4 or 8", param_hint="--head-bits")
        if one_of(self.place, PLACES, "--place") == "edge":
            if self.prompts is not None:
                raise typer.BadParameter("goes with --place cloud alone", param_hint="--prompts")
            return
        edge = DraftHeadOptions()
        given = {
            "--text": text is not None,
            "--blocks": self.blocks != edge.blocks,
            "--inner": self.inner != edge.inner,
            "--head-bits": self.head_bits != edge.head_bits,
        }
        for option, is_given in given.items():
            if is_given:
                raise typer.BadParameter("goes with --place edge alone", param_hint=option)


@with_options()
def train_draft(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; the head goes into it.")],
    chosen: SourceOptions,
    head: DraftHeadOptions,
    text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text for half of the corpus (the model writes the rest)."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the corpus.", min=4096)] = 65536,
    device: DeviceOption = "auto",
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder for corpus and checkpoint; a second run goes on from there "
            "(default: beside the bundle)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a draft head by distillation and store it in the bundle."""
    head.check(text, device)
    if head.place == "cloud":
        _train_for_cloud(bundle, chosen, head, work, tokens, device, as_json=as_json)
        return
    from optimizer.artifacts.bundle import FRONT_NAME, open_bundle
    from optimizer.export.draft_head.head_builder import HeadOptions, build_head
    from optimizer.export.draft_head.training import DEFAULT_LR, TrainOptions

    opened = open_bundle(bundle, role="edge")
    work = work or bundle.with_name(f"{bundle.name}.draft-work")
    kept = f"the corpus so far and every finished epoch are in {work}; the same command goes on"
    with long_work("training a draft head", kept=kept) as shown:
        shown.stage("reading the model")
        source = chosen.source()
        edge = opened.path(f"edge/{FRONT_NAME}").parent
        report = build_head(
            source,
            opened,
            open_front=lambda: _rows_of(edge, opened.plan),
            work=work,
            text=None if text is None else read_text(text),
            options=HeadOptions(
                num_tokens=tokens,
                vocabulary=head.vocabulary,
                num_blocks=head.blocks,
                inner=head.inner,
                head_bits=head.head_bits,
                training=TrainOptions(
                    epochs=head.epochs, lr=head.rate(DEFAULT_LR), device=compute_device(device)
                ),
            ),
            progress=shown.staged(STAGE_COSTS),
        )
    if as_json:
        print_json(report)
        return
    typer.echo(
        f"draft head of {report['num_bytes'] / 2**20:.1f} MiB, {1e3 * report['guess_s']:.2f} ms a "
        f"guess; right on {report['top1']:.1%} of {report['held_out_positions']} held-out positions"
    )


def _questions(path: Path) -> tuple[str, ...]:
    """The lines of `path` that are not empty, each once. BadParameter where there is none."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    questions = tuple(dict.fromkeys(line for line in lines if line))
    if not questions:
        raise typer.BadParameter(f"{path} has no line with a question", param_hint="--prompts")
    return questions


def _rows_of(edge: Path, plan: Plan) -> FrontRows:
    """The front in `edge` as a function of one passage, from an empty cache."""
    from edge.device.front import FrontEngine

    (engine,) = FrontEngine.load(edge, plan=plan, low_memory=True)

    def rows(token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        engine.reset()
        return engine.forward(token_ids)

    return rows


def _train_for_cloud(
    bundle: Path,
    chosen: SourceOptions,
    head: DraftHeadOptions,
    work: Path | None,
    tokens: int,
    device: str,
    *,
    as_json: bool,
) -> None:
    """The head that runs on the server."""
    from optimizer.artifacts.bundle import open_bundle
    from optimizer.export.cloud_head.cloud_head_builder import CloudHeadOptions, build_cloud_head
    from optimizer.export.cloud_head.training import DEFAULT_LR, CloudTrainOptions

    opened = open_bundle(bundle, role="cloud")
    own = () if head.prompts is None else _questions(head.prompts)
    work = work or bundle.with_name(f"{bundle.name}.cloud-draft-work")
    kept = f"the corpus so far and every finished epoch are in {work}; the same command goes on"
    with long_work("training the cloud's draft head", kept=kept) as shown:
        shown.stage("reading the model")
        report = build_cloud_head(
            chosen.source(),
            opened,
            work=work,
            options=CloudHeadOptions(
                num_tokens=tokens,
                vocabulary=head.vocabulary,
                prompts=own,
                training=CloudTrainOptions(
                    epochs=head.epochs,
                    lr=head.rate(DEFAULT_LR),
                    device=compute_device(device),
                ),
            ),
            progress=shown.staged(STAGE_COSTS),
        )
    if as_json:
        print_json(report)
        return
    depths = ", ".join(f"{share:.0%}" for share in report["by_depth"])
    held_out = "kinds of answers" if report["held_out"] == "kinds" else "answers"
    typer.echo(
        f"a head for the server: {report['tokens_a_round']:.2f} tokens a round on {held_out} "
        f"that it was not trained on ({depths} right by depth)"
    )
