"""The option `--tables`: which codec tables of a bundle."""

from __future__ import annotations

from typing import Annotated

import typer

from optimizer.artifacts.codec_tables import AUTO_TABLES, DEFAULT_TABLES, checked_tables_name
from optimizer.errors import BundleError

__all__ = ["AUTO_TABLES", "DEFAULT_TABLES", "AdaptOption", "TablesOption", "check_tables"]

TablesOption = Annotated[
    str,
    typer.Option(
        help="Codec tables of the bundle, by name; auto: for each prompt those that take the "
        "fewest bytes.",
        metavar="NAME",
    ),
]


AdaptOption = Annotated[
    bool,
    typer.Option(
        "--adapt/--no-adapt",
        help="Predict rows from the session's earlier ones, where tables and server can.",
    ),
]


def check_tables(name: str) -> str:
    """`name`. BadParameter for one that no codec tables can have."""
    try:
        return name if name == AUTO_TABLES else checked_tables_name(name)
    except BundleError as error:
        raise typer.BadParameter(str(error), param_hint="--tables") from error
