"""Options of commands that connect: credentials, and a bundle, or the one of the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from edge.errors import InputError
from edge.text_input import check_token
from splitpoint.commands.option_groups import address_of
from splitpoint.text_input import read_text

if TYPE_CHECKING:
    from edge.net.credentials import Credentials
    from optimizer.artifacts.credential_files import DeviceCredentials

CacheDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Where bundles of servers are kept (default: splitpoint in XDG_CACHE_HOME, else in "
        "~/.cache).",
        show_default=False,
    ),
]
NamedBundleOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Which bundle of a server that has several: its name, its model's, or the first 8 or "
        "more digits of a hash.",
        metavar="BUNDLE",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class CredentialOptions:
    """How the device proves who it is, and knows the server."""

    PANEL: ClassVar = "Credentials"

    credentials_file: Annotated[
        Path | None,
        typer.Option(
            "--credentials",
            help="The device's file of 'splitpoint credentials new': address, CA and token.",
        ),
    ] = None
    tls_ca: Annotated[
        Path | None,
        typer.Option("--tls-ca", help="CA certificate of the server: turns TLS on."),
    ] = None
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="Client certificate (mTLS).")
    ] = None
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Client key (mTLS).")] = None
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the access token.")
    ] = None

    def credentials(self) -> Credentials:
        """The options as the transport takes them; InputError for a bad token file."""
        from edge.net.credentials import Credentials

        own = self.paired()
        if own is not None and (self.tls_ca is not None or self.token_file is not None):
            raise InputError(
                "--credentials holds CA and token: leave out --tls-ca and --token-file"
            )
        token = None if self.token_file is None else read_token(self.token_file)
        return Credentials(
            ca_file=self.tls_ca,
            ca=None if own is None else own.ca,
            cert_file=self.tls_cert,
            key_file=self.tls_key,
            token=token if own is None else own.token,
        )

    def paired(self) -> DeviceCredentials | None:
        """The device's credentials file, read; CredentialsError. None where none was given."""
        if self.credentials_file is None:
            return None
        from optimizer.artifacts.credential_files import DeviceCredentials

        return DeviceCredentials.read(self.credentials_file)

    def addresses_of(self, server: Sequence[str] | None) -> list[str]:
        """The servers that were given, else that of the credentials file.

        BadParameter for one that cannot be dialled.
        """
        if server:
            return [str(address_of(text, "--server", lowest_port=1)) for text in server]
        own = self.paired()
        return [] if own is None else [own.server]


@dataclass(frozen=True, kw_only=True)
class BundleOptions:
    """The bundle to run: one of this device, or the server's."""

    PANEL: ClassVar = "Bundle"

    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Bundle folder. Without one the server's is fetched, and kept for the next time.",
            show_default=False,
        ),
    ] = None
    cache_dir: CacheDirOption = None
    model: NamedBundleOption = None

    def folder(self, access: CredentialOptions, addresses: Sequence[str]) -> Path:
        """The bundle's folder, fetched where none was given. Raises EdgeError.

        BadParameter where neither a bundle nor a server was given.
        """
        if self.bundle is not None:
            if self.model is not None:
                raise typer.BadParameter(
                    "--model names a bundle of the server: leave it out where you give a bundle"
                )
            return self.bundle
        if not addresses:
            raise typer.BadParameter(
                "give a bundle, or the server to fetch it from: --server HOST:PORT, or "
                "--credentials FILE"
            )
        from splitpoint.fetching import cached_bundle

        wanted = self.model or ""
        return cached_bundle(addresses, access.credentials(), self.cache_dir, bundle=wanted)


def read_token(path: Path) -> str:
    """The access token: the file's only line. InputError for what no HTTP header carries."""
    token = read_text(path).strip()
    if not token or len(token.split()) != 1:
        raise InputError(f"{path}: must hold one access token and nothing else")
    return check_token(token, str(path))
