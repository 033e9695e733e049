"""The scheduler's promises: budget, order, whole steps, and nobody starves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from optimizer.policy.batching import BatchShare, Scheduler, Waiting


def step(key: str, num_rows: int = 1) -> Waiting[str]:
    return Waiting(key=key, num_rows=num_rows, num_logits=num_rows)


def prefill(key: str, num_rows: int, num_logits: int = 1) -> Waiting[str]:
    return Waiting(key=key, num_rows=num_rows, num_logits=num_logits)


def share(key: str, num_rows: int) -> BatchShare[str]:
    return BatchShare(key=key, num_rows=num_rows)


SMALL = Scheduler(max_rows=10, max_sessions=4, min_prefill_rows=3)


def test_an_empty_queue_gives_an_empty_batch() -> None:
    assert SMALL.next_batch([]) == ()


def test_steps_go_first_and_prefill_fills_the_rest_of_the_budget() -> None:
    queue = [prefill("long", 100), step("a"), step("b", 3)]
    assert SMALL.next_batch(queue) == (share("a", 1), share("b", 3), share("long", 6))


def test_prefill_keeps_its_share_under_a_flood_of_steps() -> None:
    queue = [*(step(str(i), 2) for i in range(20)), prefill("late", 100)]
    batch = SMALL.next_batch(queue)
    assert batch[:3] == tuple(share(str(i), 2) for i in range(3))
    assert batch[-1].key == "late"
    assert batch[-1].num_rows >= 3


def test_the_rows_that_need_logits_are_never_torn_apart() -> None:
    queue = [prefill("p", 12, num_logits=4)]
    assert SMALL.next_batch(queue) == (share("p", 8),)
    assert SMALL.next_batch([step("p", 4)]) == (share("p", 4),)


def test_a_draft_longer_than_the_budget_runs_alone_instead_of_never() -> None:
    assert SMALL.next_batch([step("huge", 30), step("b")]) == (share("huge", 30),)


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Scheduler(max_rows=0)


frames = st.builds(
    lambda rows, extra: (rows + extra, rows), st.integers(1, 5), st.sampled_from([0, 0, 7, 60])
)


@given(st.lists(frames, min_size=1, max_size=30), st.integers(6, 40), st.integers(1, 8))
def test_every_batch_makes_progress_within_its_limits(
    sizes: list[tuple[int, int]], max_rows: int, max_sessions: int
) -> None:
    scheduler = Scheduler(max_rows=max_rows, max_sessions=max_sessions, min_prefill_rows=2)
    queue = [
        Waiting(key=index, num_rows=rows, num_logits=logits)
        for index, (rows, logits) in enumerate(sizes)
    ]
    batch = scheduler.next_batch(queue)
    assert batch
    assert len({part.key for part in batch}) == len(batch) <= max_sessions
    assert sum(part.num_rows for part in batch) <= max(max_rows, max(rows for rows, _ in sizes))
    for part in batch:
        rows, logits = sizes[part.key]
        assert 1 <= part.num_rows <= rows
        left = rows - part.num_rows
        assert left == 0 or left >= logits
    # Among steps, and among prefills, nobody is overtaken.
    for kind in (True, False):
        order = [w.key for w in queue if w.is_step is kind]
        taken = [part.key for part in batch if queue[part.key].is_step is kind]
        assert taken == order[: len(taken)]


@example(
    [(1, False), (3, False), (3, True), (4, False), (1, True), (3, False), (4, False), (4, False)]
)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=2, max_size=12))
def test_everybody_is_served_in_a_simulated_server(clients: list[tuple[int, bool]]) -> None:
    """Closed loop: a client whose frame is done joins the end of the queue with the next one."""
    scheduler = Scheduler(max_rows=8, max_sessions=3, min_prefill_rows=2)

    def fresh(key: int) -> Waiting[int]:
        rows, is_prefill = clients[key]
        return Waiting(key=key, num_rows=rows * (6 if is_prefill else 1), num_logits=rows)

    queue = [fresh(key) for key in range(len(clients))]
    finished: Counter[int] = Counter()
    for _ in range(60 * len(clients)):
        taken = {part.key: part.num_rows for part in scheduler.next_batch(queue)}
        assert taken
        done = [w.key for w in queue if taken.get(w.key) == w.num_rows]
        queue = [
            Waiting(
                key=w.key,
                num_rows=w.num_rows - taken.get(w.key, 0),
                num_logits=w.num_logits,
                begun=w.begun or w.key in taken,
            )
            for w in queue
            if w.key not in done
        ]
        finished.update(done)
        queue += [fresh(key) for key in done]
    for kind in (True, False):
        counts = [
            finished[key] for key, (_, is_prefill) in enumerate(clients) if is_prefill is kind
        ]
        if counts:
            assert min(counts) > 0
            assert max(counts) <= min(counts) + 2
