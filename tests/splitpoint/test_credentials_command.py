"""One file for each side: what is in it, who may read it, and that no secret is printed."""

from __future__ import annotations

import json
import ssl
import stat
import sys
from pathlib import Path

import pytest

from cloud.errors import StartError
from cloud.server.access import Access
from edge.errors import InputError
from edge.net.credentials import Credentials
from optimizer.artifacts.credential_files import DeviceCredentials, ServerCredentials
from optimizer.errors import CredentialsError
from splitpoint.cli import main
from splitpoint.commands.connection_options import CredentialOptions

TOKEN = "s3cr3t-of-the-device"


def made(folder: Path, *options: str) -> None:
    pytest.importorskip("cryptography")
    assert main(["credentials", "new", "--out", str(folder), *options]) == 0


def device_file(folder: Path, **changes: object) -> Path:
    """A device's file made by hand."""
    values = {"format": 1, "for": "device", "server": "a:1", "ca": "PEM", "token": TOKEN}
    path = folder / "device.json"
    path.write_text(json.dumps({**values, **changes}))
    path.chmod(0o600)
    return path


def test_the_files_hold_what_each_side_needs_and_only_their_owner_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "keys", "--server", "cloud.example:7", "--host", "192.0.2.7")
    said = capsys.readouterr()
    files = {path.name: path for path in (tmp_path / "keys").iterdir()}
    assert set(files) == {"ca.key", "ca.crt", "server.json", "device.json"}
    for name in ("ca.key", "server.json", "device.json"):
        assert stat.S_IMODE(files[name].stat().st_mode) == 0o600
    device = DeviceCredentials.read(files["device.json"])
    server = ServerCredentials.read(files["server.json"])
    assert device.server == "cloud.example:7"
    assert device.token == server.token
    assert device.token not in said.out + said.err
    assert device.token not in repr(device) + repr(server)
    assert b"PRIVATE" not in files["device.json"].read_bytes()
    pem = server.certificate.decode()
    decoded = ssl.PEM_cert_to_DER_cert(pem)
    assert b"cloud.example" in decoded
    assert bytes([192, 0, 2, 7]) in decoded
    assert b"localhost" not in decoded


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["credentials", "new", "--out", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("host", ["a b", "https://a", "a:1", "-a", "a..b", "", "x" * 64])
def test_a_host_that_is_none_is_refused(
    tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography")
    assert main(["credentials", "new", "--out", str(tmp_path / "new"), "--host", host]) == 1
    assert "no host name" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_code_is_shown_on_request_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("segno")
    made(tmp_path / "plain")
    assert "█" not in capsys.readouterr().out
    made(tmp_path / "shown", "--qr")
    said = capsys.readouterr()
    assert said.out.count("█") > 500
    assert "holds the token" in said.err


@pytest.mark.parametrize("package", ["cryptography", "segno"])
def test_a_missing_package_is_one_line_and_nothing_is_written(
    tmp_path: Path,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if package == "cryptography":
        pytest.importorskip("segno")
    monkeypatch.delitem(sys.modules, "splitpoint.pairing", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["credentials", "new", "--out", str(tmp_path / "new"), "--qr"]) == 1
    assert capsys.readouterr().err == (
        f"splitpoint: error: this command needs the package '{package}': "
        "pip install 'splitpoint[credentials]'\n"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "of this version"),
        ({"for": "server"}, "the server's file; the device needs its own"),
        ({"server": "a"}, "HOST:PORT"),
        ({"token": ""}, "no text 'token'"),
        ({"token": "two words"}, "not one ASCII word"),
        ({"ca": 5}, "no text 'ca'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_not_repeated(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    path = device_file(tmp_path, **changes)
    with pytest.raises(CredentialsError, match=reason) as caught:
        DeviceCredentials.read(path)
    assert str(path) in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"x" * 100_000])
def test_what_is_no_credentials_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = device_file(tmp_path)
    path.write_bytes(content)
    with pytest.raises(CredentialsError, match="no credentials file"):
        DeviceCredentials.read(path)


def test_a_file_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    path = device_file(tmp_path)
    path.chmod(0o644)
    with pytest.raises(CredentialsError, match="chmod 600"):
        DeviceCredentials.read(path)
    path.chmod(0o640)  # a group of services, as Kubernetes mounts secrets
    assert DeviceCredentials.read(path).token == TOKEN


def test_a_file_and_the_options_that_it_replaces_do_not_mix(tmp_path: Path) -> None:
    own = device_file(tmp_path)
    options = CredentialOptions(credentials_file=own, tls_ca=tmp_path / "ca.pem")
    with pytest.raises(InputError, match="leave out --tls-ca"):
        options.credentials()
    with pytest.raises(InputError, match="no CA certificate"):
        CredentialOptions(credentials_file=own).credentials().check()
    assert CredentialOptions(credentials_file=own).addresses_of(None) == ["a:1"]
    assert CredentialOptions(credentials_file=own).addresses_of(["b:2"]) == ["b:2"]
    with pytest.raises(InputError, match="both name a CA"):
        Credentials(ca_file=own, ca=b"x").check()


def test_the_servers_file_brings_tls_and_a_token_beside_those_of_a_token_file(
    tmp_path: Path,
) -> None:
    own = ServerCredentials(certificate=b"c", key=b"k", token=TOKEN)
    access = Access(own=own)
    access.check("0.0.0.0")
    assert access.tls
    assert access.tenants().of(f"Bearer {TOKEN}") is not None
    assert access.tenants().of("Bearer other") is None
    tokens = tmp_path / "tokens"
    tokens.write_text(f"other name=a\n{TOKEN} name=mine sessions=2\n")
    both = Access(own=own, token_file=tokens).tenants()
    assert [one.name for one in both.holders] == ["a", "mine"]
    with pytest.raises(StartError, match="leave out --tls-cert"):
        Access(own=own, tls_cert=tokens, tls_key=tokens).check("127.0.0.1")
