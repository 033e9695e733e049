"""KV policies: every registered one keeps rising positions that fit; what each keeps is exact."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import PolicyError
from optimizer.policy.kv.base import KvPolicy
from optimizer.policy.kv.registry import KV_POLICIES, kv_policy
from optimizer.policy.kv.shift import Shift

EVICTING = [policy for policy in KV_POLICIES.values() if policy.evicts]


@pytest.mark.parametrize("policy", EVICTING, ids=lambda policy: policy.name)
@given(num_tokens=st.integers(1, 5_000), capacity=st.integers(1, 3_000))
def test_what_stays_is_in_order_and_leaves_room_for_one_more(
    policy: KvPolicy, num_tokens: int, capacity: int
) -> None:
    kept = list(policy.kept(num_tokens, capacity))
    assert all(first < second for first, second in pairwise(kept))
    assert kept[0] >= 0
    assert kept[-1] == num_tokens - 1
    assert len(kept) < max(capacity, 2)
    if num_tokens < capacity:
        assert kept == list(range(num_tokens))


def test_shift_keeps_the_first_and_the_last_tokens() -> None:
    assert Shift().kept(100, 64) == [0, 1, 2, 3, *range(72, 100)]
    assert list(Shift().kept(10_000, 2_048))[:65] == [*range(64), 9_040]
    assert Shift().kept(3, 1) == [2]


def test_refuse_keeps_everything() -> None:
    assert not kv_policy("refuse").evicts
    assert list(kv_policy("refuse").kept(5, 5)) == [0, 1, 2, 3, 4]


def test_every_policy_is_found_by_its_name() -> None:
    assert all(kv_policy(name).name == name for name in KV_POLICIES)
    with pytest.raises(PolicyError, match="choose one of refuse, shift"):
        kv_policy("slide")
