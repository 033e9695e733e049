"""`splitpoint bench`: how fast the parts are on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

bench_app = typer.Typer(help="How fast the parts are on this machine.", no_args_is_help=True)


@bench_app.callback()
def bench() -> None:
    """How fast the parts are on this machine."""


@bench_app.command()
def codec(
    hidden_size: Annotated[int, typer.Option(help="Width of a row.", min=32)] = 4096,
    prefill_rows: Annotated[int, typer.Option(help="Rows of the larger frame.", min=2)] = 512,
    repeats: Annotated[int, typer.Option(help="Runs to take the median of.", min=1)] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Encode and decode, one row and many, beside a plain copy of the same memory."""
    from codec.bench import run_codec_bench

    report = run_codec_bench(hidden_size=hidden_size, prefill_rows=prefill_rows, repeats=repeats)
    typer.echo(json.dumps(report, indent=None if as_json else 1))
