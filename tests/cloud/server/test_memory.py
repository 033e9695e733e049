"""When freed memory is given back: after messages passed, once it is quiet, or now and then."""

from __future__ import annotations

import sys

import pytest

from cloud.server.byte_budget import ByteBudget
from cloud.server.memory import NOW_AND_THEN_S, WORTH_BYTES, Trimmer

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")


def test_it_trims_once_after_messages_passed_and_it_is_quiet() -> None:
    budget = ByteBudget()
    trimmer = Trimmer(budget)
    assert not trimmer.due(100.0)
    trimmer._trimmed_s = 100.0
    budget.passed_bytes += WORTH_BYTES
    assert not trimmer.due(100.1)
    assert trimmer.due(101.2)
    assert not trimmer.due(500.0)
    budget.passed_bytes += WORTH_BYTES - 1
    assert [trimmer.due(600.0), trimmer.due(602.0)] == [False, False]
    trimmer.trim()


def test_a_server_that_is_never_quiet_trims_now_and_then() -> None:
    budget = ByteBudget()
    trimmer = Trimmer(budget)
    times = 0
    for tick in range(1000):
        budget.passed_bytes += WORTH_BYTES
        times += trimmer.due(tick / 10)
    assert times == pytest.approx(100 / NOW_AND_THEN_S, abs=1)
