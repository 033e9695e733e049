"""HOST:PORT: what people write is read once, and nonsense is named in one line."""

from __future__ import annotations

import pytest

from protos.addresses import Address, is_loopback, parse_address
from protos.errors import AddressError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:50051", Address("127.0.0.1", 50051)),
        ("[::1]:8000", Address("::1", 8000)),
        ("::1:8000", Address("::1", 8000)),
        ("example.org:443", Address("example.org", 443)),
        ("localhost:0", Address("localhost", 0)),
    ],
)
def test_an_address_is_read(text: str, expected: Address) -> None:
    assert parse_address(text) == expected


def test_an_address_is_written_as_it_is_read() -> None:
    for text in ("127.0.0.1:50051", "[::1]:8000"):
        assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":50051", "host:port", "host:-1", "host:1.5", "host:٣", "h:+1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match="is not HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize("port", ["65536", "99999", "1" + "0" * 400])
def test_a_port_that_does_not_exist_is_refused(port: str) -> None:
    with pytest.raises(AddressError, match="a port lies between 0 and 65535"):
        parse_address(f"host:{port}")


def test_nobody_connects_to_port_zero() -> None:
    with pytest.raises(AddressError, match="between 1 and 65535"):
        parse_address("host:0", lowest_port=1)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("gpu", "the port is missing, as in gpu:50051"),
        ("50051", "the host is missing, as in 127.0.0.1:50051"),
        ("http://gpu:50051/v1", "leave out 'http://' and what follows the port, as in gpu:50051"),
        ("grpc://me:secret@gpu:50051", "as in gpu:50051"),
        ("me:secret@gpu:50051", "holds no user and no password"),
        ("gpu:50051/v1", "leave out '/' and what follows it"),
        ("gpu:50051?x=1", "leave out '?'"),
        ("gpu: 50051", "leave out the spaces"),
        ("gpu:50051\n", "leave out the spaces"),
        ("gpu:1,cpu:2", "an option of its own"),
        ("ipv4:1.2.3.4:50051", "no host name and no IP address"),
        ("::1", "no host name and no IP address"),
        ("[::1:50051", "no host name and no IP address"),
        ("[1.2.3.4]:50051", "no host name and no IP address"),
        ("gpu..lan:50051", "no host name and no IP address"),
        ("gpu\x1b[2J:50051", "no host name and no IP address"),
        ("x" * 64 + ":50051", "no host name and no IP address"),
    ],
)
def test_the_error_says_how_to_write_it_on_one_line_and_without_the_password(
    text: str, cure: str
) -> None:
    with pytest.raises(AddressError, match="is not HOST:PORT") as caught:
        parse_address(text, lowest_port=1)
    assert cure in str(caught.value)
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)
