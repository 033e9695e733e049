"""Who may talk to the server: TLS, bearer tokens, and no open server by accident."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from cloud.errors import AccessError, StartError, status_of
from cloud.sessions.tenants import Tenant, Tenants
from optimizer.artifacts.credential_files import ServerCredentials
from protos.addresses import is_loopback
from protos.wire import AUTHORIZATION_KEY

_HEALTH_PREFIX: Final = "/grpc.health.v1.Health/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What guards the server. `client_ca` turns on mutual TLS; `insecure` lets it be open.

    own: certificate, key and token from a credentials file, in place of the files. The tokens of
    `token_file` count beside its token. plain: speak plain text all the same, because a proxy on
    this machine speaks TLS.
    """

    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    token_file: Path | None = None
    insecure: bool = False
    own: ServerCredentials | None = None
    plain: bool = False

    @property
    def tls(self) -> bool:
        """Whether it speaks TLS."""
        return not self.plain and self.has_certificate

    @property
    def has_certificate(self) -> bool:
        """Whether it holds a certificate."""
        return self.tls_cert is not None or self.own is not None

    @property
    def has_tokens(self) -> bool:
        """Whether a caller has to show a token."""
        return self.token_file is not None or self.own is not None

    def check(self, host: str) -> None:
        """Raise StartError unless these guards suffice for listening on `host`."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise StartError("TLS needs both --tls-cert and --tls-key")
        if self.own is not None and self.tls_cert is not None:
            raise StartError(
                "--credentials holds a certificate: leave out --tls-cert and --tls-key"
            )
        if self.client_ca is not None and not self.has_certificate:
            raise StartError("--client-ca needs --tls-cert and --tls-key")
        if self.insecure or is_loopback(host) or (self.tls and self.has_tokens):
            return
        raise StartError(
            f"refusing to listen on {host} without TLS and a token: give --tls-cert, --tls-key "
            "and --token-file, or --insecure if the network is yours alone"
        )

    def credentials(self) -> grpc.ServerCredentials | None:
        """TLS credentials; None for plain text. Raises StartError for a file it cannot read."""
        pair = None if self.plain else self.key_and_chain()
        if pair is None:
            return None
        return grpc.ssl_server_credentials(
            [pair],
            root_certificates=None if self.client_ca is None else _read(self.client_ca),
            require_client_auth=self.client_ca is not None,
        )

    def key_and_chain(self) -> tuple[bytes, bytes] | None:
        """The private key and the certificate with its chain, in PEM; None: there are none.

        Raises StartError for a file that it cannot read.
        """
        if self.own is not None:
            return self.own.key, self.own.certificate
        if self.tls_cert is not None and self.tls_key is not None:
            return _read(self.tls_key), _read(self.tls_cert)
        return None

    def tenants(self) -> Tenants:
        """Who may connect, by the token file (`cloud.sessions.tenants`); without one, everybody.

        Raises StartError for a file that it cannot read or that is malformed.
        """
        if not self.has_tokens:
            return Tenants()
        lines = b"" if self.token_file is None else _read(self.token_file)
        if self.own is not None and not Tenants.holds(lines, self.own.token):
            lines += f"\n{self.own.token}\n".encode()
        return Tenants.parse(lines, str(self.token_file or "--credentials"))


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Lets calls pass that carry `authorization: Bearer TOKEN`; a health check needs no token."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

        async def refuse(_: Any, context: Any) -> None:
            await context.abort(
                status_of(AccessError()), "a valid access token is needed (--token-file)"
            )

        self._refusals = {
            False: grpc.unary_unary_rpc_method_handler(refuse),
            True: grpc.stream_stream_rpc_method_handler(refuse),
        }

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """The call's handler, or one that refuses the call."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(_HEALTH_PREFIX):
            return handler
        if tenant_of(self._tenants, details.invocation_metadata) is not None:
            return handler
        return self._refusals[bool(handler.request_streaming)]


def tenant_of(
    tenants: Tenants, metadata: Iterable[tuple[str, str | bytes]] | None
) -> Tenant | None:
    """Who calls, by the one `authorization` header; None: refuse."""
    sent = [value for key, value in metadata or () if key == AUTHORIZATION_KEY]
    return tenants.of(sent[0] if len(sent) == 1 else None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from error
