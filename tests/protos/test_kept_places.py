"""Places that stay, and how surprising tokens were, on the wire."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.errors import RemoteWireError
from protos.kept_places import KeptPlaces, bytes_to_places, places_to_bytes
from protos.limits import MAX_KEPT_BYTES
from protos.messages import Frame, Open, Opened, Result
from protos.wire import decode_cloud, decode_edge, encode_cloud, encode_edge

FRAME = Frame(sequence=3, first_position=2, token_ids=(7,), hidden=b"x")


@given(num_tokens=st.integers(1, 3000), data=st.data())
def test_places_come_back_with_the_number_of_tokens(num_tokens: int, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, num_tokens - 1), max_size=40)))
    kept = KeptPlaces(places, num_tokens)
    assert bytes_to_places(places_to_bytes(kept)) == kept
    assert len(places_to_bytes(kept)) == num_tokens // 8 + 1


def test_a_frame_carries_them() -> None:
    sent = replace(FRAME, kept=places_to_bytes(KeptPlaces([0, 5], 9)))
    assert decode_edge(encode_edge(sent)) == sent


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kept": bytes(2)}, "places of no cache"),
        ({"kept": b"\3", "ahead": True}, "neither ahead nor with kv"),
        ({"kept": b"\3" * (MAX_KEPT_BYTES + 1)}, "length of kept"),
    ],
)
def test_what_no_frame_may_say_is_refused(changes: dict[str, Any], reason: str) -> None:
    bad = replace(FRAME, **changes)
    with pytest.raises(RemoteWireError, match=reason):
        decode_edge(encode_edge(bad))


def test_open_and_opened_agree_on_positions() -> None:
    opened = Opened(session_id="s", max_frame_tokens=9, max_positions=70)
    assert decode_cloud(encode_cloud(opened)) == opened
    request = Open(
        session_id="s",
        model_sha256="0" * 64,
        split=1,
        hidden_size=4,
        codec_tables_sha256="0" * 64,
        max_tokens=30,
        prompt_tokens=20,
        max_positions=70,
        entropies=True,
    )
    assert decode_edge(encode_edge(request)) == request


def test_results_have_a_byte_for_each_token() -> None:
    result = Result(
        sequence=1, token_ids=(4, 5), num_tokens=9, entropies=b"\0\xff", prompt_entropies=b"abc"
    )
    assert decode_cloud(encode_cloud(result)) == result
    bad = Result(sequence=1, token_ids=(4, 5), num_tokens=9, entropies=b"a")
    with pytest.raises(RemoteWireError, match="as many entropies as tokens"):
        decode_cloud(encode_cloud(bad))
