"""`splitpoint model`: bring a model to this machine, and look at one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands.option_groups import JsonOption

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
    from splitpoint.views.long_work import bytes_of, long_work

    target = out or Path("models") / name.rsplit("/", maxsplit=1)[-1]
    kept = f"complete files are in {target}; the same command fetches what is missing"
    with long_work(f"fetching {name}", kept=kept) as work:
        found = fetch_model(name, target, bytes_of(work))
    typer.echo(found)


@model_app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="Model folder, GGUF file or config.json. Weights are not read.",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Tell what a model is, whether it can be built, why not, and what a build needs."""
    from optimizer.export.sources.inspection import inspect_model
    from splitpoint.views.model_view import model_json, show_model
    from splitpoint.views.output import print_json

    report = inspect_model(path)
    if as_json:
        print_json(model_json(report))
    else:
        show_model(report)
