"""Why an address does not work: TLS on one side only, certificates, names, and other services."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from edge.errors import ConnectError, InputError, LostError, MisconfiguredError
from edge.net.credentials import Credentials
from edge.net.diagnosis import FOREIGN, SPEAKS_NO_TLS, SPEAKS_TLS, ConnectDiagnosis
from edge.net.grpc_transport import GrpcTransport
from protos.addresses import Address
from tests.tls_keys import Keys, make_keys, needs_openssl


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("theirs"), "theirs")


@contextmanager
def grpc_server(keys: Keys | None = None, *, client_ca: Path | None = None) -> Iterator[int]:
    """A gRPC server without a service, with TLS if it has keys; yields its port."""
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        if keys is None:
            port = server.add_insecure_port("localhost:0")
        else:
            pair = (keys.key.read_bytes(), keys.cert.read_bytes())
            client = None if client_ca is None else client_ca.read_bytes()
            port = server.add_secure_port(
                "localhost:0",
                grpc.ssl_server_credentials(
                    [pair], root_certificates=client, require_client_auth=client is not None
                ),
            )
        server.start()
        try:
            yield port
        finally:
            server.stop(0).wait()


@contextmanager
def tcp_server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A service that is not ours: `answer` gets each connection."""
    with socket.create_server(("localhost", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        answer(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5.0)


def reason(
    port: int, credentials: Credentials | None = None, host: str = "localhost"
) -> str | None:
    return ConnectDiagnosis(Address(host, port), credentials or Credentials()).reason()


def test_a_server_without_tls_is_right_without_it() -> None:
    with grpc_server() as port:
        assert reason(port) is None


@needs_openssl
def test_a_server_without_tls_is_named_when_a_ca_was_given(ours: Keys) -> None:
    with grpc_server() as port:
        assert reason(port, Credentials(ca_file=ours.ca)) == SPEAKS_NO_TLS


@needs_openssl
def test_a_server_with_tls_is_named_when_no_ca_was_given(ours: Keys) -> None:
    with grpc_server(ours) as port:
        assert reason(port) == SPEAKS_TLS
        assert reason(port, Credentials(ca_file=ours.ca)) is None


@needs_openssl
def test_a_certificate_of_another_authority_or_name_is_named(ours: Keys, theirs: Keys) -> None:
    with grpc_server(ours) as port:
        for credentials, host in ((theirs.ca, "localhost"), (ours.ca, "127.0.0.1")):
            said = reason(port, Credentials(ca_file=credentials), host)
            assert said is not None
            assert "certificate does not match the name or the CA of --tls-ca" in said


@needs_openssl
def test_a_server_that_asks_for_a_client_certificate_is_named(ours: Keys, theirs: Keys) -> None:
    with grpc_server(ours, client_ca=ours.ca) as port:
        without = reason(port, Credentials(ca_file=ours.ca))
        wrong = Credentials(ca_file=ours.ca, cert_file=theirs.cert, key_file=theirs.key)
        right = Credentials(ca_file=ours.ca, cert_file=ours.cert, key_file=ours.key)
        assert without == "this server asks for a client certificate: give --tls-cert and --tls-key"
        assert "does not take the certificate of --tls-cert" in (reason(port, wrong) or "")
        assert reason(port, right) is None


@needs_openssl
def test_another_service_is_named_with_and_without_tls(ours: Keys) -> None:
    def speak_http(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with tcp_server(speak_http) as port:
        assert reason(port) == FOREIGN
        assert reason(port, Credentials(ca_file=ours.ca)) == FOREIGN


def test_a_service_that_says_nothing_costs_the_diagnosis_two_seconds_at_most() -> None:
    done = threading.Event()

    def say_nothing(connection: socket.socket) -> None:
        done.wait(20.0)

    with tcp_server(say_nothing) as port:
        begun_s = time.monotonic()
        assert reason(port) is None
        assert time.monotonic() - begun_s < 4.0
        done.set()


def test_nobody_there_needs_no_diagnosis() -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
    assert reason(port) is None


def test_a_name_that_nobody_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_name(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    assert "no host is called 'gpu.invalid'" in (reason(5, host="gpu.invalid") or "")


def test_a_resolver_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(20.0))
    monkeypatch.setattr("edge.net.diagnosis.MAX_DIAGNOSIS_S", 0.1)
    assert reason(5, host="gpu.invalid") is None
    done.set()


def test_an_address_that_has_answered_is_lost_not_misconfigured() -> None:
    diagnosis = ConnectDiagnosis(Address("gpu.invalid", 5), Credentials())
    diagnosis.answered()
    lost = LostError("away")
    assert diagnosis.explain(lost) is lost


@needs_openssl
def test_a_call_fails_by_the_reason_and_not_by_grpcs_words(ours: Keys) -> None:
    with grpc_server(ours) as port:
        transport = GrpcTransport(f"localhost:{port}")
        with pytest.raises(MisconfiguredError, match="speaks TLS: give --tls-ca"):
            transport.describe(timeout_s=1.0)
        transport.close()
    assert issubclass(MisconfiguredError, ConnectError)


@needs_openssl
def test_credentials_that_cannot_work_are_refused_before_any_connection(
    ours: Keys, theirs: Keys, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("")
    for credentials, why in (
        (Credentials(cert_file=ours.cert, key_file=ours.key), "--tls-cert needs TLS"),
        (Credentials(ca_file=ours.ca, cert_file=ours.cert), "needs both --tls-cert and --tls-key"),
        (Credentials(ca_file=ours.ca, key_file=ours.key), "needs both --tls-cert and --tls-key"),
        (Credentials(ca_file=tmp_path / "empty.pem"), "holds no certificate"),
        (Credentials(ca_file=ours.key), "holds no certificate"),
        (Credentials(ca_file=tmp_path / "missing.pem"), "missing.pem: No such file"),
        (Credentials(ca_file=tmp_path), "directory"),
        (
            Credentials(ca_file=ours.ca, cert_file=ours.cert, key_file=theirs.key),
            "not a certificate and its key",
        ),
    ):
        with pytest.raises(InputError, match=why):
            GrpcTransport("localhost:1", credentials)
