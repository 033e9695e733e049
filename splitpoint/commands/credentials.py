"""`splitpoint credentials`: one file for the server and one for its devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands.option_groups import address_of

credentials_app = typer.Typer(
    help="Certificates and tokens, in one file for each side.", no_args_is_help=True
)


@credentials_app.callback()
def credentials() -> None:
    """Certificates and tokens, in one file for each side."""


@credentials_app.command()
def new(
    out: Annotated[Path, typer.Option(help="Folder for the files; kept from others.")],
    server: Annotated[
        str, typer.Option(help="HOST:PORT that devices dial.", metavar="H:P")
    ] = "localhost:50051",
    host: Annotated[
        list[str] | None,
        typer.Option(help="A further name or IP address of the server, for its certificate."),
    ] = None,
    qr: Annotated[
        bool,
        typer.Option("--qr", help="Show the device's file, with the token, as a QR code."),
    ] = False,
) -> None:
    """Make a CA, a server certificate and a token: server.json, device.json, ca.crt and ca.key."""
    address = address_of(server, "--server", lowest_port=1)
    if qr:
        import segno  # before anything is written
    from splitpoint.pairing import new_credentials

    files = new_credentials(out, server=address, hosts=host or ())
    typer.echo(f"{files.server}  for the server: splitpoint serve BUNDLE --credentials FILE")
    typer.echo(f"{files.device}  for a device: splitpoint run --credentials FILE")
    typer.echo(f"{files.ca_key}  signs further certificates: keep it off both")
    if qr:
        text = files.device.read_text(encoding="utf-8")
        typer.echo("the code holds the token: whoever sees it can connect", err=True)
        segno.make(text, error="l", micro=False).terminal(sys.stdout, compact=True)
