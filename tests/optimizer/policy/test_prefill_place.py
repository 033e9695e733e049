"""Where a prompt is computed: the policy's choice is the best of all, and its limits are kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from optimizer.policy.prefill_place import GRAIN, PrefillCosts, num_ids, ttft_s

SECONDS = st.floats(0.0, 0.1)
COSTS = st.builds(
    PrefillCosts,
    round_trip_s=SECONDS,
    edge_s=SECONDS,
    link_s=SECONDS,
    below_s=SECONDS,
    back_s=SECONDS,
    chunk_tokens=st.integers(1, 256),
)


def costs(**changes: float) -> PrefillCosts:
    usual = {"round_trip_s": 0.05, "edge_s": 0.001, "link_s": 0.01, "below_s": 1e-4, "back_s": 2e-4}
    return PrefillCosts(chunk_tokens=64, **{**usual, **changes})


@given(COSTS, st.integers(1, 400))
def test_no_other_number_of_ids_is_sooner(each: PrefillCosts, num_tokens: int) -> None:
    chosen = num_ids("both", num_tokens, each)
    assert 0 <= chosen <= num_tokens
    assert num_tokens - chosen != 1
    allowed = [n for n in (*range(0, num_tokens, GRAIN), num_tokens) if num_tokens - n != 1]
    least_s = min(ttft_s(each, num_tokens, n) for n in allowed)
    assert ttft_s(each, num_tokens, chosen) == least_s


def test_edge_and_cloud_are_what_they_say() -> None:
    assert num_ids("edge", 100, costs()) == 0
    assert num_ids("cloud", 100, costs()) == 100
    assert num_ids("both", 100, None) == 100


def test_a_thin_link_and_a_fast_server_get_ids() -> None:
    assert num_ids("both", 512, costs()) == 512


def test_a_slow_server_and_a_fast_link_get_rows() -> None:
    assert num_ids("both", 512, costs(link_s=1e-5, below_s=0.01, back_s=2e-4)) == 0


def test_a_device_and_a_server_of_the_same_speed_share_a_prompt() -> None:
    shared = costs(edge_s=0.002, link_s=0.004, below_s=0.002, back_s=0.001)
    chosen = num_ids("both", 512, shared)
    assert 0 < chosen < 512
    assert ttft_s(shared, 512, chosen) < min(ttft_s(shared, 512, 0), ttft_s(shared, 512, 512))


def test_all_as_ids_needs_a_round_trip_and_every_layer() -> None:
    assert ttft_s(costs(), 100, 100) == 0.05 + 100 * (1e-4 + 2e-4)
