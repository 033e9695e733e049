"""`splitpoint pull`: fetch the device's side of a bundle from the server that it will talk to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands.connection_options import CredentialOptions, NamedBundleOption
from splitpoint.commands.option_groups import JsonOption, with_options
from splitpoint.views.output import print_json
from splitpoint.views.sizes import parse_size, size_text

# Slower than this, a chunk could take longer than the server waits for it.
LEAST_BYTES_PER_S = 1024


@with_options()
def pull(
    access: CredentialOptions,
    out: Annotated[Path, typer.Option(help="Folder of the bundle: new, or one fetched before.")],
    server: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the cloud server.", metavar="H:P", show_default=False),
    ] = None,
    rate_limit: Annotated[
        str | None, typer.Option(help="Most bytes a second, such as 2MiB.", metavar="SIZE")
    ] = None,
    model: NamedBundleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch what a device needs of a server's bundle; only what changed, and checked as it comes.

    Interrupted, the same command goes on where it was.
    """
    addresses = access.addresses_of(None if server is None else [server])
    if not addresses:
        raise typer.BadParameter("give the server: --server HOST:PORT, or --credentials FILE")
    bytes_per_s = None if rate_limit is None else parse_size(rate_limit, "--rate-limit")
    if bytes_per_s is not None and bytes_per_s < LEAST_BYTES_PER_S:
        raise typer.BadParameter(f"--rate-limit {rate_limit}: at least 1KiB")
    credentials = access.credentials()
    from splitpoint.fetching import fetch_bundle

    report = fetch_bundle(
        addresses[0], credentials, out, bundle=model or "", bytes_per_s=bytes_per_s
    )
    if as_json:
        print_json(asdict(report))
    elif not report.fetched:
        typer.echo(f"{out}: nothing changed, 0 B fetched ({report.num_files} files)")
    else:
        typer.echo(
            f"{out}: {len(report.fetched)} of {report.num_files} files, "
            f"{size_text(report.fetched_bytes)} fetched"
        )
