"""CPUs as people write them, and a process that stays where it was put."""

from __future__ import annotations

import os
import threading

import pytest

from edge.device import power
from edge.device.power import apply_power, parse_cpus, pin_to
from edge.errors import InputError
from hwprofiles.machine_limits import usable_cpus
from hwprofiles.sensors.cores import CpuCore


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
    waits = threading.Event()
    other = threading.Thread(target=waits.wait, daemon=True)  # one that is there before
    other.start()
    try:
        pin_to(str(min(before)))
        assert usable_cpus() == 1
        if other.native_id is not None:
            assert os.sched_getaffinity(other.native_id) == {min(before)}
        with pytest.raises(InputError, match="affinity"):
            pin_to("4095")
    finally:
        pin_to(",".join(map(str, sorted(before))))
        waits.set()
        other.join()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_low_keeps_the_process_on_small_cores_at_low_priority(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = sorted(os.sched_getaffinity(0))
    cores = [CpuCore(cpus=(number,), is_small=number == here[0]) for number in here]
    monkeypatch.setattr(power, "cpu_cores", lambda: cores)
    lowered: dict[int, int] = {}
    levels = {os.getpid(): 3}  # its own; that of every other thread is lower already
    monkeypatch.setattr(os, "getpriority", lambda _kind, thread: levels.get(thread, 15))
    monkeypatch.setattr(
        os, "setpriority", lambda _kind, thread, level: lowered.__setitem__(thread, level)
    )
    try:
        choice = apply_power("low")
        assert os.sched_getaffinity(0) == {here[0]}
        assert (choice.threads, choice.cpus) == (1, (here[0],))
        assert lowered.pop(os.getpid()) == 10
        assert set(lowered.values()) <= {15}
    finally:
        pin_to(",".join(map(str, here)))


def test_a_core_that_sleeps_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = [CpuCore(cpus=(4095,), is_small=True), CpuCore(cpus=(0,))]
    monkeypatch.setattr(power, "cpu_cores", lambda: cores)
    monkeypatch.setattr(os, "setpriority", lambda *_arguments: None)
    choice = apply_power("low")
    assert (choice.threads, choice.cpus) == (1, ())


def test_full_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_arguments: object) -> None:
        raise AssertionError("full must not touch the process")

    monkeypatch.setattr(os, "setpriority", never)
    monkeypatch.setattr(os, "sched_setaffinity", never, raising=False)
    assert apply_power("full").threads is None
