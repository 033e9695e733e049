"""Options of every command, frozen: none vanishes or changes its default unnoticed.

`command_options.json` is the list. A new option is added to it by hand, so that a review sees it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from splitpoint.cli import COMMANDS, make_app

EXPECTED = Path(__file__).with_name("command_options.json")


def options_of(command: Any, name: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """Every command below this one: its options and arguments, with their defaults."""
    if hasattr(command, "commands"):
        for child, found in sorted(command.commands.items()):
            yield from options_of(found, f"{name} {child}".strip())
        return
    yield (
        name,
        {
            " ".join(sorted([*parameter.opts, *parameter.secondary_opts])): (
                "required" if parameter.required else str(parameter.default)
            )
            for parameter in command.params
        },
    )


def test_every_command_has_the_options_it_had() -> None:
    found = dict(options_of(typer.main.get_command(make_app(COMMANDS))))
    assert found == json.loads(EXPECTED.read_text(encoding="utf-8"))


def test_every_option_has_a_help_text() -> None:
    silent = [
        f"{name} {option.opts[0]}"
        for name, command in commands(typer.main.get_command(make_app(COMMANDS)))
        for option in command.params
        if getattr(option, "help", None) in (None, "")
    ]
    assert silent == []


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that runs something."""
    if hasattr(command, "commands"):
        for child, found in command.commands.items():
            yield from commands(found, f"{name} {child}".strip())
    else:
        yield name, command
