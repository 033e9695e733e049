"""Options written once appear in every command, and arrive as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from splitpoint.commands.option_groups import with_options


@dataclass(frozen=True, kw_only=True)
class Colours:
    PANEL: ClassVar = "What it looks like"
    red: Annotated[int, typer.Option(help="How red.", min=0)] = 1
    names: Annotated[list[str] | None, typer.Option("--name")] = None


def app(**defaults: int) -> typer.Typer:
    made = typer.Typer()

    @made.command()
    @with_options(**defaults)
    def paint(wall: str, colours: Colours, twice: bool = False) -> None:
        typer.echo(f"{wall} {colours} {twice}")

    return made


def test_the_fields_are_options_and_arrive_together() -> None:
    result = CliRunner().invoke(app(), ["north", "--red", "3", "--name", "x", "--twice"])
    assert result.output == "north Colours(red=3, names=['x']) True\n"


def test_a_command_may_have_defaults_of_its_own() -> None:
    assert "red=7" in CliRunner().invoke(app(red=7), ["north"]).output


def test_bounds_hold() -> None:
    assert CliRunner().invoke(app(), ["north", "--red", "-1"]).exit_code == 2


def test_a_default_for_nothing_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="green"):
        app(green=1)


def test_the_help_shows_the_options_under_their_heading() -> None:
    text = CliRunner().invoke(app(), ["--help"]).output
    assert text.index("What it looks like") < text.index("--red")
    assert text.index("--twice") < text.index("What it looks like")
