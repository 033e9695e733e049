"""What a stream tells a load balancer: names that keep secrets, and the server that was named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge.net.route import Route
from protos.affinity import is_replica_name, prefix_name, replica_in, session_name
from protos.messages import Open

REQUEST = Open(
    session_id="a-secret",
    model_sha256="0" * 64,
    split=1,
    hidden_size=4,
    codec_tables_sha256="0" * 64,
    max_tokens=8,
)


def test_a_stream_names_its_session_by_a_hash() -> None:
    sent = dict(Route(prefix_hash="ab", replica="r1").metadata_of(REQUEST))
    assert sent == {"x-session-id": session_name("a-secret"), "x-prefix-hash": "ab"} | {
        "x-replica": "r1"
    }
    assert "secret" not in str(sent)


def test_what_is_not_known_is_not_sent() -> None:
    assert dict(Route().metadata_of(REQUEST)) == {"x-session-id": session_name("a-secret")}


def test_a_session_that_goes_on_from_an_older_one_names_that_one() -> None:
    sent = dict(Route().metadata_of(replace(REQUEST, continues="older")))
    assert sent["x-session-id"] == session_name("older")


def test_the_server_named_last_is_remembered_and_silence_changes_nothing() -> None:
    route = Route()
    route.heard((("x-replica", "r1"),))
    route.heard((("other", "x"),))
    route.heard(None)
    assert route.replica == "r1"
    route.heard((("x-replica", "r2"),))
    assert route.replica == "r2"


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "-r", "r\n1", "é"])
def test_an_impossible_name_is_not_sent_back(name: str) -> None:
    assert not is_replica_name(name)
    assert replica_in((("x-replica", name),)) == ""


def test_equal_beginnings_have_one_name_only_where_they_may_be_shared() -> None:
    ids = [1, 2, 3]
    assert prefix_name(REQUEST, ids) == prefix_name(replace(REQUEST, session_id="b"), ids)
    assert prefix_name(REQUEST, ids) != prefix_name(REQUEST, [1, 23])
    salted = replace(REQUEST, prefix_salt=b"s" * 16)
    assert prefix_name(salted, ids) != prefix_name(REQUEST, ids)
    assert prefix_name(replace(REQUEST, split=2), ids) != prefix_name(REQUEST, ids)
