"""`splitpoint config`: which options variables and the settings file give."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import typer

from cloud.gpu.switches import OVERLAP_VARIABLE
from splitpoint.commands.option_groups import JsonOption
from splitpoint.settings import (
    FILE_VARIABLE,
    defaults_from,
    leaves,
    options_of,
    read_settings,
    settings_file,
    variables_of,
)
from splitpoint.views.output import print_json

config_app = typer.Typer(
    name="config", help="What variables and splitpoint.toml set.", no_args_is_help=True
)


@config_app.callback()
def config() -> None:
    """What variables and splitpoint.toml set."""


@config_app.command()
def show(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show every option that is set by a variable or by the settings file, and by which."""
    from splitpoint.cli import COMMANDS, make_app

    file = settings_file(context.find_root().params.get("config"))
    command = typer.main.get_command(make_app(COMMANDS))
    values = {} if file is None else defaults_from(read_settings(file), command, COMMANDS, file)
    found = list(_set_options(command, values, str(file)))
    known = {FILE_VARIABLE, OVERLAP_VARIABLE}
    for place, one in leaves(command):
        known.update(name for key in options_of(one) for name in variables_of(place, key))
    unknown = sorted(
        name for name in os.environ if name.startswith("SPLITPOINT_") and name not in known
    )
    if as_json:
        print_json(
            {"file": None if file is None else str(file), "options": found, "unknown": unknown}
        )
        return
    typer.echo(f"file: {file or 'none (splitpoint.toml, SPLITPOINT_CONFIG or --config)'}")
    for one in found:
        typer.echo(f"{one['command']} --{one['option']} {one['value']}  ({one['source']})")
    for name in unknown:
        typer.echo(f"{name} is no option of a command", err=True)


def _set_options(command: Any, values: dict[str, Any], file: str) -> Iterator[dict[str, Any]]:
    for place, one in leaves(command):
        table: Any = values
        for word in place.split():
            table = table.get(word, {})
        for key, option in options_of(one).items():
            names = variables_of(place, key)
            variable = next((name for name in names if os.environ.get(name)), "")
            if variable:
                value: Any = os.environ[variable]
            elif option.name in table:
                value = table[option.name]
            else:
                continue
            yield {"command": place, "option": key, "value": value, "source": variable or file}
