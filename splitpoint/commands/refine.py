"""`splitpoint profile refine`: a device profile, corrected by what programs measured."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands.choices import completed, device_profiles
from splitpoint.commands.option_groups import JsonOption
from splitpoint.views.output import print_json
from splitpoint.views.screen import open_console


def refine(
    profile: Annotated[
        str,
        typer.Argument(
            help="A shipped profile's name, or a file.", autocompletion=completed(device_profiles)
        ),
    ],
    log: Annotated[
        Path,
        typer.Option(
            "--from", help="Log that 'run', 'api' or 'serve' wrote (--measure).", metavar="FILE"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Write the refined profile here.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the new profile (default: of its file).")
    ] = None,
    any_processor: Annotated[
        bool,
        typer.Option(
            "--any-processor",
            help="Take records of another processor than the profile's, as for a data sheet's "
            "profile; the new one then has that processor.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Correct a device profile by what was measured on that machine, and say what changed."""
    from hwprofiles.profiles.catalog import device_to_yaml, load_device
    from optimizer.measured.log import read_measurements
    from optimizer.measured.refine import refine_profile
    from splitpoint.views.measured_view import print_refinement, refinement_json

    found = refine_profile(
        load_device(profile),
        read_measurements(log),
        name=name or out.stem,
        command=shlex.join(["splitpoint", *sys.argv[1:]]),
        any_processor=any_processor,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(device_to_yaml(found.profile), encoding="utf-8")
    if as_json:
        print_json(refinement_json(found))
        return
    print_refinement(open_console(width=None if sys.stdout.isatty() else 200), found)
    typer.echo(str(out))
