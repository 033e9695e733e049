"""Options from the environment and from a file, beside those of the command line.

    SPLITPOINT_SERVE_KV_MEMORY=2GiB    an option of one command
    SPLITPOINT_SERVER=cloud:50051      the same of every command that has it

    # splitpoint.toml
    [serve]
    kv-memory = "2GiB"
    [profile.device]
    role = "cloud"

The command line comes before a variable, a variable before the file, the file before the default.
A table or a key that no command has is an error: a misspelt limit would be no limit.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import tomllib
from typer.exceptions import TyperException

FILE_NAME: Final = "splitpoint.toml"
FILE_VARIABLE: Final = "SPLITPOINT_CONFIG"
_PREFIX: Final = "SPLITPOINT"
_MAX_BYTES: Final = 1 << 20
_NEVER_SET: Final = frozenset({"help", "version", "debug", "config"})
# Options that mean something else than in other commands: SPLITPOINT_MODEL is a model's folder,
# and SPLITPOINT_BUNDLE what is measured.
_OWN_VARIABLE: Final = frozenset(
    {("serve", "bundle"), *((place, "model") for place in ("run", "chat", "api", "pull"))}
)


class SettingsError(TyperException):
    """A settings file that cannot be used: bad usage, in one line."""


def settings_file(given: str | None) -> Path | None:
    """The file to read: `--config`, SPLITPOINT_CONFIG, or splitpoint.toml in this folder.

    None where there is none. Raises SettingsError for a file that was named and is not there.
    """
    named = given or os.environ.get(FILE_VARIABLE)
    path = Path(named or FILE_NAME)
    if path.is_file():
        return path
    if named:
        raise SettingsError(f"{path}: there is no such file")
    return None


def read_settings(path: Path) -> dict[str, Any]:
    """The file's tables. Raises SettingsError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SettingsError(f"{path}: larger than {_MAX_BYTES} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: nested too deeply") from error


def take_variables(command: Any, name: str = "") -> None:
    """Let every option below `command` be given by its variables."""
    for place, one in leaves(command, name):
        for key, option in options_of(one).items():
            option.envvar = list(variables_of(place, key))
            option.show_envvar = False  # the same rule for all, said once


def variables_of(place: str, key: str) -> tuple[str, ...]:
    """Names of the variables of an option, the one for the command alone first."""
    own = _upper(_PREFIX, place, key)
    return (own,) if (place, key) in _OWN_VARIABLE else (own, _upper(_PREFIX, key))


def defaults_from(
    settings: Mapping[str, Any], command: Any, known: Collection[str], where: Path
) -> dict[str, Any]:
    """The file's values as click takes them: by command, and by its parameters' names.

    known: all commands; `command` may hold only some. Raises SettingsError for a table of no
    command, a key of no option, and a value of another kind than options take.
    """
    for name in settings:
        if name not in known:
            raise SettingsError(f"{where}: [{name}] is no command{_hint(name, known)}")
    return {
        name: _defaults(table, command.commands[name], name, where)
        for name, table in settings.items()
        if name in command.commands
    }


def _defaults(table: Any, command: Any, place: str, where: Path) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise SettingsError(f"{where}: {place} is a table: [{place}]")
    found: dict[str, Any] = {}
    if hasattr(command, "commands"):
        for name, inner in table.items():
            if name not in command.commands:
                hint = _hint(name, command.commands)
                raise SettingsError(f"{where}: [{place}.{name}] is no command{hint}")
            found[name] = _defaults(inner, command.commands[name], f"{place}.{name}", where)
        return found
    options = options_of(command)
    for key, value in table.items():
        if key not in options:
            hint = _hint(key, options)
            raise SettingsError(f"{where}: [{place}] has no option {key}{hint}")
        many = getattr(options[key], "multiple", False)
        if not isinstance(value, (str, int, float, *((list,) if many else ()))):
            raise SettingsError(f"{where}: [{place}] {key}: not a value of an option")
        found[options[key].name] = [value] if many and not isinstance(value, list) else value
    return found


def place_of_value(error: Any, file: Path | None) -> str:
    """Where the value came from that an error is about, as "splitpoint.toml [run]: "; empty for the
    command line, and for an error that is about no option's value."""
    context, option = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None or option is None:
        return ""
    source = context.get_parameter_source(option.name)
    if getattr(source, "name", "") == "DEFAULT_MAP":
        return f"{file} [{context.info_name}]: "
    if getattr(source, "name", "") == "ENVIRONMENT":
        given = next((name for name in option.envvar or () if name in os.environ), "a variable")
        return f"{given}: "
    return ""


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command below `command` that runs something, by its words."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for child, found in command.commands.items():
        yield from leaves(found, f"{name} {child}".strip())


def options_of(command: Any) -> dict[str, Any]:
    """A command's options by their long names without dashes."""
    return {
        word.lstrip("-"): parameter
        for parameter in command.params
        if parameter.param_type_name == "option"
        for word in parameter.opts
        if word.startswith("--") and word.lstrip("-") not in _NEVER_SET
    }


def _upper(*parts: str) -> str:
    return "_".join(parts).upper().replace("-", "_").replace(" ", "_").replace(".", "_")


def _hint(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
