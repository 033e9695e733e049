"""Options of `serve` about who may connect, and what devices may fetch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from splitpoint.views.sizes import parse_size

if TYPE_CHECKING:
    from cloud.server.access import Access


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """Who may connect."""

    PANEL: ClassVar = "Access"

    tls_cert: Annotated[Path | None, typer.Option(help="Server certificate (PEM).")] = None
    tls_key: Annotated[Path | None, typer.Option(help="Key of the certificate (PEM).")] = None
    client_ca: Annotated[
        Path | None, typer.Option("--client-ca", help="CA that clients must come from (mTLS).")
    ] = None
    credentials_file: Annotated[
        Path | None,
        typer.Option(
            "--credentials",
            help="The server's file of 'splitpoint credentials new': certificate, key and token.",
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Accepted access tokens, one a line, with limits: docs/reference/server.md."
        ),
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without TLS and token.")
    ] = False
    behind_proxy: Annotated[
        bool,
        typer.Option(
            "--behind-proxy",
            help="Only a proxy reaches this server, and writes x-forwarded-for: what is limited "
            "for one address counts its clients.",
        ),
    ] = False
    allow_pull: Annotated[
        bool | None,
        typer.Option(
            "--allow-pull/--no-allow-pull",
            help="Let devices fetch their side of the bundle, which has a part of the weights "
            "(default: yes, but not beyond loopback without a token).",
            show_default=False,
        ),
    ] = None
    pull_rate: Annotated[
        str, typer.Option(help="Most bytes a second for all pulls together.", metavar="SIZE")
    ] = "32MiB"

    def pull_bytes_per_s(self) -> int:
        """Bytes a second of all pulls. BadParameter for no size."""
        found = parse_size(self.pull_rate, "--pull-rate")
        if found == 0:
            raise typer.BadParameter("--pull-rate 0: give --no-allow-pull to offer nothing")
        return found

    def access(self) -> Access:
        """The options as the server takes them."""
        from cloud.server.access import Access
        from optimizer.artifacts.credential_files import ServerCredentials

        own = self.credentials_file
        return Access(
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            client_ca=self.client_ca,
            token_file=self.token_file,
            insecure=self.insecure,
            own=None if own is None else ServerCredentials.read(own),
        )
