"""Few recordings serve all decode steps, and none outlives the memory that it was made with."""

from __future__ import annotations

import pytest

from cloud.engine.step_graphs import (
    MIN_TOKENS,
    ROW_BUCKETS,
    GraphKey,
    StepGraphs,
    graph_key,
    keys_up_to,
)


def test_a_key_holds_the_step_and_wastes_less_than_half_of_its_rows() -> None:
    for num_rows in range(1, ROW_BUCKETS[-1] + 1):
        key = graph_key(first_layer=2, num_rows=num_rows, max_tokens=77)
        assert key is not None
        assert num_rows <= key.num_rows <= max(1, 2 * num_rows - 1)
        assert key.first_layer == 2


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(1, MIN_TOKENS), (MIN_TOKENS, MIN_TOKENS), (MIN_TOKENS + 1, 2 * MIN_TOKENS), (5000, 8192)],
)
def test_the_longest_history_is_rounded_up_to_a_power_of_two(tokens: int, expected: int) -> None:
    key = graph_key(first_layer=0, num_rows=3, max_tokens=tokens)
    assert key is not None
    assert key.max_tokens == expected


def test_a_step_of_more_rows_than_the_largest_bucket_has_no_graph() -> None:
    assert graph_key(first_layer=0, num_rows=ROW_BUCKETS[-1] + 1, max_tokens=1) is None


def test_the_keys_up_to_a_size_are_those_that_its_steps_need() -> None:
    keys = keys_up_to(first_layer=3, num_rows=20, max_tokens=3000)
    for num_rows in range(1, 21):
        for tokens in (1, MIN_TOKENS, MIN_TOKENS + 1, 3000):
            assert graph_key(first_layer=3, num_rows=num_rows, max_tokens=tokens) in keys
    assert len(keys) == len(set(keys)) == 3 * ROW_BUCKETS.index(24) + 3


class Recorder:
    """Makes numbers, and remembers what for."""

    def __init__(self) -> None:
        self.made: list[GraphKey] = []

    def __call__(self, key: GraphKey) -> int:
        self.made.append(key)
        return len(self.made)


def test_a_recording_is_made_once_until_its_memory_changes() -> None:
    recorder = Recorder()
    graphs = StepGraphs(recorder)
    first, second = GraphKey(0, 8, 1024), GraphKey(3, 8, 1024)
    assert [graphs.get(key, 1) for key in (first, second, first)] == [1, 2, 1]
    assert graphs.get(first, 2) == 3
    assert len(graphs) == 1
    assert recorder.made == [first, second, first]


def test_the_recording_used_longest_ago_goes() -> None:
    recorder = Recorder()
    graphs = StepGraphs(recorder, limit=2)
    keys = [GraphKey(layer, 8, 1024) for layer in range(3)]
    for key in (keys[0], keys[1], keys[0], keys[2], keys[0]):
        graphs.get(key, 0)
    assert recorder.made == keys
    graphs.get(keys[1], 0)
    assert recorder.made == [*keys, keys[1]]
