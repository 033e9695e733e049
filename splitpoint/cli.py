"""The `splitpoint` command: one file a subcommand, results on stdout, everything else on stderr.

Exit status: 0 success, 1 a failure with one clear line on stderr, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from typer.exceptions import TyperException

from splitpoint.commands.api import api
from splitpoint.commands.bench import bench_app
from splitpoint.commands.build import build
from splitpoint.commands.certify import certify
from splitpoint.commands.chat import chat
from splitpoint.commands.demo import demo
from splitpoint.commands.doctor import doctor
from splitpoint.commands.emulate_link import emulate_link
from splitpoint.commands.model import model_app
from splitpoint.commands.plan import plan
from splitpoint.commands.profile import profile_app
from splitpoint.commands.run import run
from splitpoint.commands.serve import serve
from splitpoint.commands.simulate import simulate
from splitpoint.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, one_line

app = typer.Typer(
    name="splitpoint",
    help="Run one large language model across an edge device and a cloud server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(model_app, name="model")
app.add_typer(profile_app, name="profile")
app.add_typer(bench_app, name="bench")
app.command()(plan)
app.command()(build)
app.command()(certify)
app.command()(serve)
app.command()(run)
app.command()(chat)
app.command()(api)
app.command()(emulate_link)
app.command()(simulate)
app.command()(demo)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"splitpoint {version('splitpoint')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Log everything and show tracebacks.")
    ] = False,
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
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return app(args=arguments, prog_name="splitpoint", standalone_mode=False) or 0
    except TyperException as error:
        if not arguments:
            return EXIT_USAGE  # the help is on the screen already
        print(f"splitpoint: {error.format_message()} (see --help)", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:  # the last line of defence: one line, not a traceback
        if "--debug" in arguments:
            raise
        print(f"splitpoint: error: {one_line(error)}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
