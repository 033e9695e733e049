"""`splitpoint model fetch`: bring a model to this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

model_app = typer.Typer(help="Models on this machine.", no_args_is_help=True)


@model_app.callback()
def models() -> None:
    """Models on this machine."""


@model_app.command()
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="smollm2-135m-instruct, a Hugging Face hub id, or a local folder or GGUF file."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to put it (default: models/NAME).")
    ] = None,
) -> None:
    """Fetch a model; prints the path to give as --model."""
    from optimizer.export.sources.fetch import fetch_model
    from splitpoint.views.progress import byte_progress

    target = out or Path("models") / name.rsplit("/", maxsplit=1)[-1]
    with byte_progress(name) as progress:
        typer.echo(fetch_model(name, target, progress))
