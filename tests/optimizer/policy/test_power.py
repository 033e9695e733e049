"""What each power setting chooses, on machines of one and of two kinds of cores."""

from __future__ import annotations

import pytest

from hwprofiles.sensors.cores import CpuCore
from optimizer.errors import PolicyError
from optimizer.policy.power import FULL_EFFORT, POWER_SETTINGS, PowerChoice, power_choice
from splitpoint.commands import choices

PHONE = tuple(CpuCore(cpus=(number,), is_small=number < 2) for number in range(8))
BOARD = tuple(CpuCore(cpus=(number,)) for number in range(4))
LAPTOP = tuple(CpuCore(cpus=(number, number + 4)) for number in range(4))  # two threads a core
ONE = BOARD[:1]


@pytest.mark.parametrize("cores", [PHONE, BOARD, LAPTOP, ONE])
def test_full_leaves_everything_as_it_is(cores: tuple[CpuCore, ...]) -> None:
    assert power_choice("full", cores, num_usable=8) == PowerChoice()


@pytest.mark.parametrize(
    ("cores", "threads", "cpus"),
    [(PHONE, 2, (0, 1)), (BOARD, 1, ()), (LAPTOP, 1, ()), (ONE, 1, ())],
)
def test_low_runs_on_the_small_cores_or_with_one_thread(
    cores: tuple[CpuCore, ...], threads: int, cpus: tuple[int, ...]
) -> None:
    choice = power_choice("low", cores, num_usable=8)
    assert (choice.threads, choice.cpus, choice.niceness) == (threads, cpus, 10)
    assert (choice.drafts.max_drafts, choice.drafts.sends_ahead) == (4, False)


@pytest.mark.parametrize(
    ("cores", "threads", "cpus"),
    [(PHONE, 3, (2, 3, 4, 5, 6, 7)), (BOARD, 2, ()), (LAPTOP, 2, ()), (ONE, 1, ())],
)
def test_balanced_takes_half_of_the_big_cores(
    cores: tuple[CpuCore, ...], threads: int, cpus: tuple[int, ...]
) -> None:
    choice = power_choice("balanced", cores, num_usable=8)
    assert (choice.threads, choice.cpus, choice.niceness) == (threads, cpus, 0)
    assert choice.drafts == FULL_EFFORT


def test_no_choice_has_more_threads_than_the_quota_allows() -> None:
    assert power_choice("balanced", PHONE, num_usable=2).threads == 1
    assert power_choice("balanced", PHONE, num_usable=4).threads == 2  # half of what there is
    assert power_choice("low", PHONE, num_usable=1).threads == 1


def test_another_word_is_refused() -> None:
    with pytest.raises(PolicyError, match="low, balanced, full"):
        power_choice("turbo", BOARD, num_usable=4)


def test_the_command_line_knows_the_same_settings() -> None:
    assert choices.POWER_SETTINGS == POWER_SETTINGS
