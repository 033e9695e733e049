"""Who may use the API: keys, loopback names, and what listening further away needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.api.access import ApiAccess, check_host, check_key
from edge.api.errors import ApiError
from edge.errors import InputError
from protos.addresses import is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_is_known_by_name_and_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "localhost.evil.example", ""])
def test_anything_else_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_a_key_is_compared_as_a_whole_and_its_scheme_in_any_case() -> None:
    keys = (b"one", b"two")
    check_key("bEaReR two", keys)
    check_key(None, ())  # no key is asked for
    for given in (None, "", "two", "Bearer", "Bearer tw", "Bearer two2", "Basic two"):
        with pytest.raises(ApiError) as caught:
            check_key(given, keys)
        assert caught.value.status == 401


@pytest.mark.parametrize("host", ["localhost:8000", "[::1]:8000", "127.0.0.1"])
def test_a_loopback_host_header_passes(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize("host", [None, "", "evil.example", "[", "127.0.0.1.evil.example"])
def test_any_other_host_header_is_refused(host: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        check_host(host)
    assert (caught.value.status, caught.value.code) == (403, "unknown_host")


def test_keys_are_lines_without_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# the phone\n  one  \n\ntwo\n")
    assert ApiAccess(key_file=path).keys() == (b"one", b"two")
    assert ApiAccess().keys() == ()
    path.write_text("# none yet\n")
    with pytest.raises(InputError, match="no key in it"):
        ApiAccess(key_file=path).keys()


def test_half_of_a_tls_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="both"):
        ApiAccess(tls_cert=tmp_path / "cert").check("127.0.0.1")
