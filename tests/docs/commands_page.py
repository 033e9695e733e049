"""The page of commands, written from the command tree: its options, defaults and help texts.

`python -m tests.docs.commands_page` writes it; a test compares. What a table cannot say is on the
page `docs/reference/command-line.md`, which is written by hand.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import typer.main

from splitpoint.cli import COMMANDS, PANELS, make_app
from splitpoint.settings import leaves

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"
HEAD: Final = """\
# Commands

*Written by `python -m tests.docs.commands_page` from the command itself. A test compares this page
with it, so change the help text of an option in the code.*

`splitpoint SUBCOMMAND [OPTIONS]`. [The command line](command-line.md) has what holds for all of
them: exit statuses, settings files and variables, sizes, addresses, bounds of numbers.
"""
# The page that says more, by command.
MORE: Final = {
    "demo": "[your first split](../guides/first-split.md)",
    "config show": "[variables and a file](command-line.md#variables-and-a-file)",
    "model inspect": "[models](models.md)",
    "profile device": "[profiles](profiles.md)",
    "profile link": "[profiles](profiles.md)",
    "plan": "[planning a deployment](../guides/planning-a-deployment.md)",
    "build": "[plan and bundle](plan-and-bundle.md)",
    "calibrate": "[calibrating for your text](../guides/calibrating-for-your-text.md)",
    "certify": "[calibrating for your text](../guides/calibrating-for-your-text.md)",
    "sensitivity": "[planning a deployment](../guides/planning-a-deployment.md)",
    "train-draft": "[using drafting](../guides/drafting.md)",
    "serve": "[limits, tenants and security](server.md)",
    "run": "[where the time and the bytes went](metrics.md#edge-run---json)",
    "chat": "[a conversation](command-line.md#a-conversation)",
    "api": "[local API](local-api.md)",
    "emulate-link": "[trying a bad link](../guides/bad-links.md)",
    "simulate": "[simulating a fleet](../guides/simulating-a-fleet.md)",
}
_KINDS: Final = {int: "whole number", float: "number", str: "text", Path: "path"}
_NO_PANEL: Final = ""
# A command in quotes, or an option, within a help text.
_CODE: Final = re.compile(r"'((?:splitpoint|plan) [^']+)'|(?<![`\w-])(--[a-z][a-z-]*)")


@cache
def tree() -> dict[str, Any]:
    """Every command that runs something, by its words."""
    return dict(leaves(typer.main.get_command(make_app(COMMANDS))))


def page() -> str:
    """The whole page."""
    root = typer.main.get_command(make_app(COMMANDS))
    lines = [HEAD, "## Before the subcommand\n", *_table(_parameters(root))]
    shared = _shared_panels()
    for panel, names in PANELS.items():
        lines += [f"\n## {panel}"]
        for name in names:
            for words, command in tree().items():
                if words.partition(" ")[0] == name:
                    lines += ["", *_section(words, command, shared)]
    lines += ["\n## Shared options"]
    for panel, (users, parameters) in shared.items():
        lines += [f"\n### {panel}\n", f"Of {_listed([f'`{user}`' for user in users])}.", ""]
        lines += [*_table(parameters), *_other_defaults(panel, users, parameters)]
    return "\n".join(lines) + "\n"


def _section(words: str, command: Any, shared: dict[str, Any]) -> Iterator[str]:
    arguments = " ".join(_name(one) for one in _parameters(command) if _is_argument(one))
    yield f"### {words}\n"
    yield "\n\n".join(map(_wrapped, _as_prose(command.help or "").split("\n\n")))
    if words in MORE:
        yield f"\nMore: {MORE[words]}."
    options = "" if all(map(_is_argument, _parameters(command))) else "[OPTIONS]"
    yield "\n    " + " ".join(filter(None, ["splitpoint", words, arguments, options]))
    taken = []
    for panel, parameters in _panels(command).items():
        if panel in shared:
            taken.append(f"[{panel.lower()}](#{panel.lower().replace(' ', '-')})")
            continue
        if panel != _NO_PANEL:
            yield f"\n**{panel}**"
        yield ""
        yield from _table(parameters)
    if taken:
        yield "\n" + _wrapped(f"It also takes the options of {_listed(taken)}.")


def _parameters(command: Any) -> list[Any]:
    return [one for one in command.params if one.name != "help" and not one.hidden]


def _panels(command: Any) -> dict[str, list[Any]]:
    """The parameters by the heading of the help they are under; those of none come first."""
    found: dict[str, list[Any]] = {_NO_PANEL: []}
    for parameter in _parameters(command):
        found.setdefault(parameter.rich_help_panel or _NO_PANEL, []).append(parameter)
    return {panel: parameters for panel, parameters in found.items() if parameters}


def _shared_panels() -> dict[str, tuple[list[str], list[Any]]]:
    """The panels that several commands have alike: the commands, and the first one's options."""
    found: dict[str, list[tuple[str, list[Any]]]] = {}
    for words, command in tree().items():
        for panel, parameters in _panels(command).items():
            if panel != _NO_PANEL:
                found.setdefault(panel, []).append((words, parameters))
    return {
        panel: ([words for words, _ in users], users[0][1])
        for panel, users in found.items()
        if len(users) > 1 and len({_options_text(parameters) for _, parameters in users}) == 1
    }


def _options_text(parameters: list[Any]) -> str:
    return "\n".join(f"{_name(one)} {one.help}" for one in parameters)


def _other_defaults(panel: str, names: list[str], parameters: list[Any]) -> Iterator[str]:
    """What a later command has as another default than the first."""
    for name in names[1:]:
        others = [
            f"`{own.opts[0]} {own.default}`"
            for own, first in zip(_panels(tree()[name])[panel], parameters, strict=True)
            if own.default != first.default
        ]
        if others:
            yield f"\nDefaults of `{name}`: {_listed(others)}."


def _table(parameters: list[Any]) -> Iterator[str]:
    yield "| option | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for one in parameters:
        names = _name(one) if _is_argument(one) else ", ".join([*one.opts, *one.secondary_opts])
        spans = ", ".join(f"`{name}`" for name in names.split(", "))
        help_text = _as_prose(one.help or "").replace("\n", " ").replace("|", "\\|")
        yield f"| {spans} | {_value(one)} | {_default(one)} | {help_text} |"


def _is_argument(parameter: Any) -> bool:
    return not parameter.opts[0].startswith("-")


def _name(parameter: Any) -> str:
    """An option's own name, or what the usage line calls an argument."""
    if not _is_argument(parameter):
        return str(parameter.opts[0])
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _value(parameter: Any) -> str:
    """What kind of value it takes, with its bounds, and whether it may be repeated."""
    annotation = parameter.type_descriptor.annotation
    repeated = ", may be repeated" if parameter.multiple else ""
    if getattr(parameter, "is_flag", False):
        return "flag"
    if get_origin(annotation) is list:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{choice.value}`" for choice in annotation)
    kind = {"H:P": "HOST:PORT", "S": "seconds", "PATH": "path"}.get(
        parameter.metavar or "", parameter.metavar
    )
    if kind is None or _is_argument(parameter):
        kind = _KINDS[annotation]
    low, high = parameter.min, parameter.max
    if low is not None and high is not None:
        return f"{kind}, {low:g} to {high:g}{repeated}"
    return f"{kind}{'' if low is None else f', at least {low:g}'}{repeated}"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if getattr(parameter, "is_flag", False):
        return "on" if parameter.default else "off"
    if parameter.default in (None, ""):
        return ""
    default = parameter.default
    return f"`{default.value if isinstance(default, Enum) else default}`"


def _as_prose(text: str) -> str:
    """A help text for a page: options and commands as code, nothing read as markup."""
    return _CODE.sub(lambda found: f"`{found[1] or found[2]}`", text.replace("<", "&lt;"))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _listed(items: list[str]) -> str:
    *others, last = items
    return f"{', '.join(others)} and {last}" if others else last


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
