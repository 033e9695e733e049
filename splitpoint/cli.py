"""The `splitpoint` command: one file a subcommand, results on stdout, everything else on stderr.

Exit status: 0 success, 1 a failure with one clear line on stderr, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import typer.main
from typer.exceptions import TyperException

from hwprofiles.machine_limits import limit_library_threads
from splitpoint.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, one_line
from splitpoint.settings import (
    defaults_from,
    leaves,
    place_of_value,
    read_settings,
    settings_file,
    take_variables,
)
from splitpoint.text_input import accept_any_text

# Where each subcommand is, by what people come for and in the order of the help. Only the one that
# runs is imported: on a small device the others' imports are memory and a second of start-up.
PANELS: Final = {
    "First": {
        "demo": "splitpoint.commands.demo:demo",
        "doctor": "splitpoint.commands.doctor:doctor",
        "config": "splitpoint.commands.config:config_app",
    },
    "Prepare": {
        "model": "splitpoint.commands.model:model_app",
        "profile": "splitpoint.commands.profile:profile_app",
        "plan": "splitpoint.commands.plan:plan",
        "build": "splitpoint.commands.build:build",
        "calibrate": "splitpoint.commands.calibrate:calibrate",
        "certify": "splitpoint.commands.certify:certify",
        "sensitivity": "splitpoint.commands.sensitivity:sensitivity",
        "train-draft": "splitpoint.commands.train_draft:train_draft",
        "credentials": "splitpoint.commands.credentials:credentials_app",
    },
    "Run": {
        "serve": "splitpoint.commands.serve:serve",
        "run": "splitpoint.commands.run:run",
        "chat": "splitpoint.commands.chat:chat",
        "api": "splitpoint.commands.api:api",
        "pull": "splitpoint.commands.pull:pull",
        "cache": "splitpoint.commands.cache:cache_app",
    },
    "Try before shipping": {
        "emulate-link": "splitpoint.commands.emulate_link:emulate_link",
        "simulate": "splitpoint.commands.simulate:simulate",
        "bench": "splitpoint.commands.bench:bench_app",
    },
}
COMMANDS: Final = {name: where for panel in PANELS.values() for name, where in panel.items()}
# Set by the shell's own script, which `--install-completion` writes.
COMPLETE_VARIABLE: Final = "_SPLITPOINT_COMPLETE"
_PANEL_OF: Final = {name: panel for panel, commands in PANELS.items() for name in commands}


def make_app(names: Iterable[str]) -> typer.Typer:
    """The command with the subcommands `names`."""
    app = typer.Typer(
        name="splitpoint",
        help="Run one large language model across an edge device and a cloud server.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(options)
    for name in names:
        module, _, attribute = COMMANDS[name].partition(":")
        command = getattr(import_module(module), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=_PANEL_OF[name])
        else:
            app.command(name, rich_help_panel=_PANEL_OF[name])(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"splitpoint {version('splitpoint')}")
        raise typer.Exit


def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Log everything and show tracebacks.")
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Settings file (default: SPLITPOINT_CONFIG, else splitpoint.toml in this folder).",
            show_default=False,
        ),
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show and exit."),
    ] = False,
) -> None:
    """Options that stand before the subcommand."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. `argv` without the program's name."""
    accept_any_text()
    arguments = list(sys.argv[1:] if argv is None else argv)
    # gRPC's core logs to stderr below Python's logging; every failure gets its one line from us.
    os.environ.setdefault("GRPC_VERBOSITY", "INFO" if "--debug" in arguments else "NONE")
    limit_library_threads()  # before any of them is imported
    is_completing = COMPLETE_VARIABLE in os.environ
    wanted, config = _wanted(_completed_words() if is_completing else arguments)
    app = make_app([wanted] if wanted in COMMANDS else COMMANDS)
    file: Path | None = None
    try:
        command = typer.main.get_command(app)
        take_variables(command)
        shorten_types(command)
        file = None if is_completing else settings_file(config)
        values = {} if file is None else defaults_from(read_settings(file), command, COMMANDS, file)
        return (
            command.main(
                args=arguments, prog_name="splitpoint", standalone_mode=False, default_map=values
            )
            or 0
        )
    except TyperException as error:
        if not arguments or not error.format_message():
            return EXIT_USAGE  # nothing was asked, and the help is on the screen already
        place = place_of_value(error, file)
        print(f"splitpoint: {place}{error.format_message()} (see --help)", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:  # the last line of defence: one line, not a traceback
        if "--debug" in arguments:
            raise
        print(f"splitpoint: error: {one_line(error, wanted)}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILURE


def shorten_types(command: Any) -> None:
    """Let the help name a number's type in one letter, so that no option's name is cut beside it.

    The range stands behind it anyway.
    """
    for _, one in leaves(command):
        for option in one.params:
            bounds = [getattr(option, name, None) for name in ("min", "max")]
            if option.metavar is None and bounds != [None, None]:
                option.metavar = "N"


def _completed_words() -> list[str]:
    """The words of a line that a shell wants to complete, without the program's name."""
    line = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    return line.split()[1:]


def _wanted(arguments: Sequence[str]) -> tuple[str, str | None]:
    """The subcommand, "" where none is named, and the file that `--config` names before it."""
    config: str | None = None
    words = iter(arguments)
    for word in words:
        if word == "--config":
            config = next(words, None)
        elif word.startswith("--config="):
            config = word.partition("=")[2]
        elif not word.startswith("-"):
            return word, config
    return "", config


if __name__ == "__main__":
    sys.exit(main())
