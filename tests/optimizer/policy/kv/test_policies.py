"""KV policies: every registered one keeps rising positions that fit; what each keeps is exact."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import PolicyError
from optimizer.policy.kv.base import KvPolicy
from optimizer.policy.kv.entropy import Entropy
from optimizer.policy.kv.recent import Recent
from optimizer.policy.kv.registry import KV_POLICIES, kv_policy
from optimizer.policy.kv.shift import Shift

EVICTING = [policy for policy in KV_POLICIES.values() if policy.evicts]


@pytest.mark.parametrize("policy", EVICTING, ids=lambda policy: policy.name)
@given(num_tokens=st.integers(1, 5_000), capacity=st.integers(1, 3_000))
def test_what_stays_is_in_order_and_leaves_room_for_one_more(
    policy: KvPolicy, num_tokens: int, capacity: int
) -> None:
    scores = [float(slot * 7919 % 97) for slot in range(num_tokens)] * policy.needs_scores
    kept = list(policy.kept(num_tokens, capacity, scores))
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


def test_recent_keeps_four_sinks_and_the_newest() -> None:
    assert Recent().kept(32, 32) == [0, 1, 2, 3, *range(8, 32)]


def test_entropy_keeps_sinks_the_most_surprising_and_the_newest() -> None:
    """28 of 32 stay: 4 sinks, 6 newest, and the 18 most surprising of the 22 between."""
    scores = [1.0] * 32
    for slot in (5, 9, 20):
        scores[slot] = 0.5
    assert Entropy().kept(32, 32, scores) == [
        *range(4),
        *(slot for slot in range(4, 26) if slot not in (4, 5, 9, 20)),
        *range(26, 32),
    ]
    with pytest.raises(ValueError, match="31 scores of 32"):
        Entropy().kept(32, 32, scores[1:])


def test_refuse_keeps_everything() -> None:
    assert not kv_policy("refuse").evicts
    assert list(kv_policy("refuse").kept(5, 5)) == [0, 1, 2, 3, 4]


def test_every_policy_is_found_by_its_name() -> None:
    assert all(kv_policy(name).name == name for name in KV_POLICIES)
    assert kv_policy("keep") is kv_policy("refuse")
    with pytest.raises(PolicyError, match="choose one of refuse, shift"):
        kv_policy("slide")
