"""Make what a server and its devices trust each other by: a CA, a certificate, a token.

Keys are ECDSA on P-256. The CA's key signs the server's certificate, and certificates for later:
it belongs on neither side. Certificates follow RFC 5280.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from optimizer.artifacts.credential_files import (
    DeviceCredentials,
    ServerCredentials,
    write_secret,
)
from optimizer.errors import CredentialsError
from protos.addresses import Address, is_loopback

CA_DAYS: Final = 3650
SERVER_DAYS: Final = 825
TOKEN_BYTES: Final = 24
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_BACKDATED: Final = timedelta(days=1)  # clocks of devices differ, and some have no battery
_HOST: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingFiles:
    """Where the files are."""

    ca_key: Path
    ca_certificate: Path
    server: Path
    device: Path

    @classmethod
    def below(cls, folder: Path) -> PairingFiles:
        """The files of a folder."""
        return cls(
            ca_key=folder / "ca.key",
            ca_certificate=folder / "ca.crt",
            server=folder / "server.json",
            device=folder / "device.json",
        )

    @property
    def all(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.ca_key, self.ca_certificate, self.server, self.device)


def new_credentials(folder: Path, *, server: Address, hosts: Sequence[str] = ()) -> PairingFiles:
    """Make all files in `folder`, which is made if it is missing.

    server: what devices dial. hosts: further names and IP addresses that the certificate is for;
    a server on this machine has all of loopback's. Raises CredentialsError for a host that is none,
    and where one of the files exists: nothing is changed.
    """
    files = PairingFiles.below(folder)
    wanted = [server.host, *hosts]
    if any(is_loopback(host) for host in wanted):
        wanted += LOOPBACK
    names = [_alternative_name(host) for host in dict.fromkeys(wanted)]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in files.all:
        if path.exists():
            raise CredentialsError(f"{path}: exists already; nothing was changed")
    ca_key, ca = _authority()
    key, certificate = _server_certificate(ca_key, ca, names)
    token = secrets.token_hex(TOKEN_BYTES)
    write_secret(files.ca_key, _pem_of_key(ca_key))
    files.ca_certificate.write_bytes(_pem(ca))
    ServerCredentials(
        certificate=_pem(certificate), key=_pem_of_key(key).encode(), token=token
    ).write(files.server)
    DeviceCredentials(server=str(server), ca=_pem(ca), token=token).write(files.device)
    return files


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host) or len(host) > 253:
        raise CredentialsError(f"--host {ascii(host)[:80]}: is no host name and no IP address")
    return x509.DNSName(host)


def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Splitpoint CA")])
    builder = (
        _begun(name, name, key, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return key, builder.sign(key, hashes.SHA256())


def _server_certificate(
    ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, names: Sequence[x509.GeneralName]
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Splitpoint server")])
    of_ca = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = (
        _begun(name, ca.subject, key, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(of_ca, critical=False)
    )
    return key, builder.sign(ca_key, hashes.SHA256())


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
