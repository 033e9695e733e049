"""TLS and mutual TLS: the right certificates get in, the wrong ones do not."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from cloud.errors import StartError
from cloud.server.access import Access
from cloud.server.process import ServerConfig, serving
from protos import wire
from protos.addresses import is_loopback
from tests.cloud.serving import calls_of
from tests.cloud.tiny_bundle import MODEL_SHA256, make_bundle

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the keys")


class Authority(NamedTuple):
    """A CA and a certificate it signed for this machine."""

    ca: Path
    cert: Path
    key: Path


def authority(folder: Path, name: str, *, days: int = 2) -> Authority:
    """days: how long the certificate is good; below zero, it has expired."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    ca, key, request = f"{name}-ca", f"{name}.key", f"{name}.csr"
    new_key = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    openssl(
        *new_key, *f"-x509 -days 2 -keyout {ca}.key -out {ca}.pem".split(), "-subj", f"/CN={ca}"
    )
    openssl(*new_key, *f"-keyout {key} -out {request} -subj /CN=localhost -addext {names}".split())
    signing = f"x509 -req -in {request} -CA {ca}.pem -CAkey {ca}.key -CAcreateserial -days {days}"
    openssl(*signing.split(), "-copy_extensions", "copy", "-out", f"{name}.pem")
    return Authority(folder / f"{name}-ca.pem", folder / f"{name}.pem", folder / f"{name}.key")


async def describe(port: int, credentials: grpc.ChannelCredentials | None, token: str = "") -> str:
    """The served model's hash, or the name of the status."""
    address = f"127.0.0.1:{port}"
    channel = (
        grpc.aio.insecure_channel(address)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials)
    )
    async with channel:
        try:
            reply = await calls_of(channel).unary_unary(wire.DESCRIBE_PATH)(
                wire.encode_describe_request(),
                timeout=10,
                metadata=(("authorization", f"Bearer {token}"),) if token else (),
            )
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return wire.decode_description(reply).model_sha256


def client(ca: Path, own: Authority | None = None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=ca.read_bytes(),
        private_key=own.key.read_bytes() if own else None,
        certificate_chain=own.cert.read_bytes() if own else None,
    )


def test_only_the_right_certificates_and_token_get_in(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    ours, theirs = authority(tmp_path, "ours"), authority(tmp_path, "theirs")
    (tmp_path / "tokens").write_text("secret\n")
    config = ServerConfig(
        bundle=tmp_path / "bundle",
        port=0,
        kv_memory_bytes=1 << 20,
        access=Access(tls_cert=ours.cert, tls_key=ours.key, token_file=tmp_path / "tokens"),
    )

    async def scenario() -> None:
        async with serving(config) as server:
            assert await describe(server.port, client(ours.ca), "secret") == MODEL_SHA256
            assert await describe(server.port, client(ours.ca), "guess") == "UNAUTHENTICATED"
            assert await describe(server.port, client(ours.ca)) == "UNAUTHENTICATED"
            assert await describe(server.port, client(theirs.ca), "secret") == "UNAVAILABLE"
            assert await describe(server.port, None, "secret") == "UNAVAILABLE"
        mutual = replace(config, access=replace(config.access, client_ca=ours.ca))
        async with serving(mutual) as server:
            assert await describe(server.port, client(ours.ca, ours), "secret") == MODEL_SHA256
            assert await describe(server.port, client(ours.ca, theirs), "secret") == "UNAVAILABLE"
            assert await describe(server.port, client(ours.ca), "secret") == "UNAVAILABLE"

    asyncio.run(asyncio.wait_for(scenario(), 280))


def test_an_expired_certificate_is_refused_on_either_side(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    good, expired = authority(tmp_path, "good"), authority(tmp_path, "expired", days=-1)
    config = ServerConfig(bundle=tmp_path / "bundle", port=0, kv_memory_bytes=1 << 20)

    async def scenario() -> None:
        stale = Access(tls_cert=expired.cert, tls_key=expired.key)
        async with serving(replace(config, access=stale)) as server:
            assert await describe(server.port, client(expired.ca)) == "UNAVAILABLE"
        mutual = Access(tls_cert=good.cert, tls_key=good.key, client_ca=expired.ca)
        async with serving(replace(config, access=mutual)) as server:
            assert await describe(server.port, client(good.ca, expired)) == "UNAVAILABLE"

    asyncio.run(asyncio.wait_for(scenario(), 280))


def test_tls_and_a_token_together_open_other_interfaces(tmp_path: Path) -> None:
    guarded = Access(tls_cert=tmp_path, tls_key=tmp_path, token_file=tmp_path)
    guarded.check("0.0.0.0")
    Access(insecure=True).check("0.0.0.0")
    for lacking in (
        replace(guarded, tls_cert=None),
        replace(guarded, tls_key=None),
        replace(guarded, token_file=None),
    ):
        with pytest.raises(StartError):
            lacking.check("0.0.0.0")
    with pytest.raises(StartError, match="client-ca"):
        Access(client_ca=tmp_path).check("127.0.0.1")


def test_an_empty_token_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("\n# nothing here\n")
    with pytest.raises(StartError, match="no token"):
        Access(token_file=tmp_path / "tokens").tenants()
    with pytest.raises(StartError, match="missing"):
        Access(token_file=tmp_path / "missing").tenants()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("[::]", False),
        ("192.168.0.4", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
