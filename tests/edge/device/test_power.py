"""CPUs as people write them, and a process that stays where it was put."""

from __future__ import annotations

import os

import pytest

from edge.device.power import parse_cpus, pin_to
from edge.errors import InputError
from hwprofiles.machine_limits import usable_cpus


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", {0}), ("0-3", {0, 1, 2, 3}), ("0,2", {0, 2}), ("1-2, 5", {1, 2, 5})]
)
def test_lists_and_ranges(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "0,,2", "3-1"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_cpus(text)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_pinned_process_counts_its_own_cpus() -> None:
    before = os.sched_getaffinity(0)
    try:
        pin_to(str(min(before)))
        assert usable_cpus() == 1
        with pytest.raises(InputError, match="affinity"):
            pin_to("4095")
    finally:
        os.sched_setaffinity(0, before)
