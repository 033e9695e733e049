"""What a device shows to a server, and how it knows the server: TLS files and a token.

The files are read and checked once, before anything else is loaded.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from edge.errors import InputError
from edge.text_input import check_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to reach a server that is not plain loopback.

    ca_file: the authority that signed the server's certificate (PEM); turns TLS on. ca: the same
    as the PEM itself, which a device's credentials file holds. cert_file, key_file: this device's
    own certificate, where the server asks for one. token: sent as a bearer token, where the server
    asks for one. InputError for a token that no HTTP header carries.
    """

    ca_file: Path | None = None
    ca: bytes | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is not None:
            check_token(self.token, "credentials")

    @property
    def tls(self) -> bool:
        """Whether the server has to speak TLS."""
        return self.ca_file is not None or self.ca is not None

    def check(self) -> None:
        """InputError, which names the file or option, for files that cannot be used together."""
        if (self.cert_file is None) != (self.key_file is None):
            raise InputError("a client certificate needs both --tls-cert and --tls-key")
        if self.ca_file is not None and self.ca is not None:
            raise InputError("--tls-ca and --credentials both name a CA: give one of them")
        if not self.tls and self.cert_file is not None:
            raise InputError("--tls-cert needs TLS: give the server's CA as well (--tls-ca)")
        if self.tls:
            self.tls_context()

    def tls_context(self) -> ssl.SSLContext:
        """A TLS client's context from the files; InputError for one that cannot be read."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        try:
            if self.ca is not None:
                context.load_verify_locations(cadata=self.ca.decode("ascii"))
            else:
                context.load_verify_locations(self.ca_file)
        except (ssl.SSLError, UnicodeDecodeError) as error:
            if self.ca is not None:
                raise InputError("the credentials file holds no CA certificate in PEM") from error
            raise InputError(f"{self.ca_file}: holds no certificate in PEM (--tls-ca)") from error
        except OSError as error:
            raise InputError(f"{self.ca_file}: {error.strerror} (--tls-ca)") from error
        if self.cert_file is None:
            return context
        for file in (self.cert_file, self.key_file):
            _read(file)
        try:
            context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise InputError(
                f"{self.cert_file} and {self.key_file}: not a certificate and its key in PEM "
                "(--tls-cert, --tls-key)"
            ) from error
        return context

    def read_files(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """CA, key and certificate as bytes, None where not given. InputError: not readable."""
        ca = _read(self.ca_file) if self.ca is None else self.ca
        return ca, _read(self.key_file), _read(self.cert_file)


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
