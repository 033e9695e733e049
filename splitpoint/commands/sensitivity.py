"""`splitpoint sensitivity`: what single front layers lose at 4 bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands.option_groups import SourceOptions, with_options
from splitpoint.text_input import read_text
from splitpoint.views.progress import stage_progress


@with_options()
def sensitivity(
    chosen: SourceOptions,
    split: Annotated[int, typer.Option(help="Layers to measure, from the first.", min=1)],
    text: Annotated[Path, typer.Option(help="UTF-8 text to measure on.", show_default=False)],
    out: Annotated[Path, typer.Option(help="JSON file to write.", show_default=False)],
    tokens: Annotated[int, typer.Option(help="Tokens of the text.", min=1)] = 4096,
    window: Annotated[int, typer.Option(help="Tokens of context.", min=2)] = 256,
) -> None:
    """Measure what each front layer loses at 4 and at 8 bits ('plan --sensitivity' takes it)."""
    from optimizer.export.certify.certificate import text_windows
    from optimizer.export.certify.layer_sensitivity import measure_sensitivity

    with stage_progress("measuring layers") as progress:
        progress("reading the model")
        source = chosen.open()
        whole = source.load_model().eval()
        ids = list(source.load_tokenizer()(read_text(text)[: 16 * tokens])["input_ids"])
        found = measure_sensitivity(
            source,
            whole,
            split=split,
            windows=text_windows(ids, window=window, max_tokens=tokens),
            progress=lambda done, total: progress(f"layer {done} of {total}"),
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    found.save(out)
    for layer, loss in enumerate(found.losses):
        typer.echo(
            f"layer {layer}: {100 * math.expm1(loss[4]):+.3f} % at 4 bits, "
            f"{100 * math.expm1(loss[8]):+.3f} % at 8",
            err=True,
        )
    typer.echo(str(out))
