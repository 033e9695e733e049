"""`splitpoint credentials`: one file for the server and one for its devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

credentials_app = typer.Typer(
    help="Certificates and tokens, in one file for each side.", no_args_is_help=True
)


@credentials_app.callback()
def credentials() -> None:
    """Certificates and tokens, in one file for each side."""


@credentials_app.command()
def new(
    out: Annotated[Path, typer.Option(help="Folder for the files; kept from others.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or IP address of the server (default: localhost and 127.0.0.1). Devices "
            "dial the first.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port that devices dial.", min=1, max=65535)] = 50051,
    qr: Annotated[
        bool,
        typer.Option("--qr", help="Show the device's file, with the token, as a QR code."),
    ] = False,
) -> None:
    """Make a CA, a server certificate and a token: server.json, device.json, ca.crt and ca.key."""
    if qr:
        import segno  # before anything is written
    from splitpoint.pairing import new_credentials

    files = new_credentials(out, hosts=host or ["localhost", "127.0.0.1"], port=port)
    typer.echo(f"{files.server}  for the server: splitpoint serve BUNDLE --credentials FILE")
    typer.echo(f"{files.device}  for a device: splitpoint run --credentials FILE")
    typer.echo(f"{files.ca_key}  signs further certificates: keep it off both")
    if qr:
        text = files.device.read_text(encoding="utf-8")
        typer.echo("the code holds the token: whoever sees it can connect", err=True)
        segno.make(text, error="l", micro=False).terminal(sys.stdout, compact=True)
