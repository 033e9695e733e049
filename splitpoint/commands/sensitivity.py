"""`splitpoint sensitivity`: what single front layers lose at 4 bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands.choices import DEVICES, one_of
from splitpoint.commands.option_groups import (
    DeviceOption,
    SourceOptions,
    compute_device,
    with_options,
)
from splitpoint.text_input import read_text
from splitpoint.views.long_work import long_work


@with_options()
def sensitivity(
    chosen: SourceOptions,
    split: Annotated[int, typer.Option(help="Layers to measure, from the first.", min=1)],
    text: Annotated[Path, typer.Option(help="UTF-8 text to measure on.", show_default=False)],
    out: Annotated[Path, typer.Option(help="JSON file to write.", show_default=False)],
    tokens: Annotated[int, typer.Option(help="Tokens of the text.", min=1)] = 4096,
    window: Annotated[int, typer.Option(help="Tokens of context.", min=2)] = 256,
    device: DeviceOption = "auto",
) -> None:
    """Measure what each front layer loses at 4 and at 8 bits ('plan --sensitivity' takes it)."""
    one_of(device, DEVICES, "--device")
    from optimizer.export.certify.certificate import text_windows
    from optimizer.export.certify.layer_sensitivity import measure_sensitivity
    from optimizer.export.layers.layered_model import LayeredModel
    from optimizer.export.working_folder import working_folder

    with long_work("measuring layers") as work:
        work.stage("reading the model")
        source = chosen.source()
        ids = list(source.load_tokenizer()(read_text(text)[: 16 * tokens])["input_ids"])
        with working_folder(out) as scratch:
            found = measure_sensitivity(
                source,
                LayeredModel(source, folder=scratch, device=compute_device(device)),
                split=split,
                windows=text_windows(ids, window=window, max_tokens=tokens),
                progress=lambda done, total: work.steps(f"layer {done} of {total}", done, total),
            )
    found.save(out)
    for layer, loss in enumerate(found.losses):
        typer.echo(
            f"layer {layer}: {100 * math.expm1(loss[4]):+.3f} % at 4 bits, "
            f"{100 * math.expm1(loss[8]):+.3f} % at 8",
            err=True,
        )
    typer.echo(str(out))
