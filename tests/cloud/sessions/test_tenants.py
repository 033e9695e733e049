"""The token file, who holds which token, and the bucket that meters a tenant's rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.errors import StartError
from cloud.sessions.tenants import ANONYMOUS, Bucket, Tenants

FILE = b"""
# tenants of the test
old-token
s1 name=lab sessions=4 tokens_per_s=100
s2 name=lab sessions=4 tokens_per_s=100
s3 sessions=1
"""


def test_each_token_belongs_to_its_line() -> None:
    tenants = Tenants.parse(FILE, "tokens")
    old = tenants.of("Bearer old-token")
    assert old is not None
    assert (old.sessions, old.tokens_per_s) == (None, None)
    assert old.name.startswith("tenant-")
    assert "old-token" not in old.name
    assert tenants.of(b"bearer s1") == tenants.of("Bearer s2")
    assert tenants.of("Bearer s1").name == "lab"  # type: ignore[union-attr]
    for wrong in (None, "", "Bearer ", "Bearer s", "s1", "Basic s1", "Bearer #"):
        assert tenants.of(wrong) is None


def test_without_tokens_everybody_is_anonymous() -> None:
    assert Tenants().of(None) is ANONYMOUS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("t sessions=0", "above zero"),
        ("t tokens_per_s=nan", "above zero"),
        ("t sessions=many", "numbers"),
        ("t colour=red", "line 1: word 2 is no option"),
        ("t sessions=1 sessions=2", "sessions= is there twice"),
        ("t share_prefixes=maybe", "share_prefixes= is yes or no"),
        ("a name=x sessions=1\nb name=x sessions=2", "line 2"),
        ("# nothing", "no token"),
    ],
)
def test_a_bad_line_is_named(line: str, reason: str) -> None:
    with pytest.raises(StartError, match=reason):
        Tenants.parse(line.encode(), "tokens")


@pytest.mark.parametrize(
    "text",
    [
        "geheim-1 name=a\nother name=b\ngeheim-1 name=c\n",
        "geheim-1\n\ngeheim-1\n",
        "geheim-1 name=a sessions=1\ngeheim-1 name=a sessions=1\n",
    ],
    ids=["two tenants", "no name", "one tenant"],
)
def test_a_token_on_two_lines_is_refused_by_their_numbers_and_not_printed(text: str) -> None:
    with pytest.raises(StartError, match=r"tokens, line (2|3): .*line 1 too") as caught:
        Tenants.parse(text.encode(), "tokens")
    assert "geheim" not in str(caught.value)


def test_a_second_token_on_a_line_is_refused_and_not_printed() -> None:
    with pytest.raises(StartError, match="line 1: word 2 is no option") as caught:
        Tenants.parse(b"first geheim-2 name=a\n", "tokens")
    assert "geheim" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_token() -> None:
    assert Tenants.parse(b"\xef\xbb\xbftoken\n", "tokens").of("Bearer token") is not None


@given(
    st.floats(0.5, 1000),
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 2)), min_size=1, max_size=50),
)
def test_over_any_time_no_more_than_rate_and_burst_pass(
    rate: float, frames: list[tuple[int, float]]
) -> None:
    bucket, now_s, passed, largest = Bucket.full(rate, at_s=0.0), 0.0, 0, 0
    for count, pause_s in frames:
        now_s += pause_s
        bucket, wait_s = bucket.take(count, at_s=now_s)
        now_s += wait_s
        passed, largest = passed + count, max(largest, count)
        assert passed <= max(rate, 1.0) + rate * now_s + 1e-6 * passed
