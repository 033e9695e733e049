"""Who is admitted, who waits, who is sent away; and that deciding needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from optimizer.policy.admission import AdmissionRule, ServerLoad, Verdict

RULE = AdmissionRule(max_sessions=4, max_waiting=2, retry_after_s=1.0)


@pytest.mark.parametrize(
    ("load", "blocks", "kind"),
    [
        (ServerLoad(0, 0, 10, 10), 10, "admit"),
        (ServerLoad(0, 0, 10, 10), 11, "never"),
        (ServerLoad(3, 0, 5, 10), 5, "admit"),
        (ServerLoad(3, 0, 5, 10), 6, "wait"),
        (ServerLoad(4, 0, 10, 10), 1, "wait"),
        (ServerLoad(0, 1, 10, 10), 1, "wait"),  # nobody overtakes the queue
        (ServerLoad(4, 2, 10, 10), 1, "busy"),
        (ServerLoad(4, 2, 10, 10), 11, "never"),
    ],
)
def test_the_verdict_follows_from_the_load(load: ServerLoad, blocks: int, kind: str) -> None:
    assert RULE.decide(load, blocks).kind == kind


def test_without_a_queue_nobody_waits_and_a_longer_queue_means_a_later_return() -> None:
    strict = AdmissionRule(max_sessions=1)
    assert strict.decide(ServerLoad(1, 0, 9, 9), 1) == Verdict("busy", 1.0)
    times = [
        AdmissionRule(max_sessions=4, max_waiting=n).decide(ServerLoad(4, n, 9, 9), 1).retry_after_s
        for n in range(5)
    ]
    assert times == sorted(set(times))


def test_who_waited_too_long_is_told_to_come_back_the_later_the_more_others_wait() -> None:
    assert RULE.after_waiting(0) == Verdict("busy", 1.0)
    assert RULE.after_waiting(3) == Verdict("busy", 4.0)


def test_scheduling_and_admission_import_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; "
        "import optimizer.policy.batching, optimizer.policy.admission; "
        "import cloud.kv.blocks, cloud.sessions.tenants"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
