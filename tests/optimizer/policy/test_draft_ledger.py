"""Drafting may lose a small share of an answer's time, and no more."""

from __future__ import annotations

import random

import pytest

from optimizer.policy.draft_ledger import LOSS_SHARE, RENEW_AFTER, DraftLedger

PLAIN_S, DRAFT_S = 0.005, 0.002


def run(chance: float, *, rounds: int, seed: int = 0, guess_s: float = 0.0) -> tuple[float, float]:
    """Time of an answer by the time without drafts, and the share of rounds that had any."""
    ledger, rng = DraftLedger(), random.Random(seed)
    total_s, tokens, drafted = 0.0, 0, 0
    for _ in range(rounds):
        has_drafts = ledger.allows
        brought = 1 + (has_drafts and rng.random() < chance)
        took_s = PLAIN_S * rng.uniform(0.9, 1.1) + has_drafts * (DRAFT_S + guess_s)
        ledger.answered(
            took_s, brought, has_drafts=has_drafts, guess_s=guess_s if has_drafts else 0.0
        )
        total_s, tokens, drafted = total_s + took_s, tokens + brought, drafted + has_drafts
    return total_s / (tokens * PLAIN_S), drafted / rounds


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("chance", [0.0, 0.2, 0.35])
def test_guesses_that_do_not_pay_lose_little(chance: float, seed: int) -> None:
    slower, drafted = run(chance, rounds=400, seed=seed)
    assert slower < 1.0 + LOSS_SHARE + 0.02  # the last is how even plain rounds vary here
    assert drafted < 0.6 or chance == 0.35  # that one nearly pays


@pytest.mark.parametrize("seed", range(20))
def test_guesses_that_pay_are_hardly_held_back(seed: int) -> None:
    faster, drafted = run(0.8, rounds=400, seed=seed)
    assert drafted > 0.85
    assert faster < 0.85


def test_a_first_round_that_waited_is_not_what_a_round_takes() -> None:
    ledger = DraftLedger()
    ledger.answered(1.0, 1, has_drafts=False, guess_s=0.0)
    for _ in range(3):
        ledger.answered(PLAIN_S, 1, has_drafts=False, guess_s=0.0)
    assert ledger.allows
    for _ in range(10):  # with the first one's second, these would be a gain
        ledger.answered(0.1, 2, has_drafts=True, guess_s=0.0)
    assert not ledger.allows


def test_a_drafter_that_only_takes_time_is_stopped_too() -> None:
    ledger = DraftLedger()
    for _ in range(5):
        ledger.answered(PLAIN_S, 1, has_drafts=False, guess_s=0.0)
    assert ledger.allows
    ledger.answered(PLAIN_S + 0.004, 1, has_drafts=False, guess_s=0.004)
    assert not ledger.allows


def test_now_and_then_a_round_goes_without_drafts() -> None:
    ledger = DraftLedger()
    for _ in range(4):
        ledger.answered(PLAIN_S, 1, has_drafts=False, guess_s=0.0)
    for _ in range(RENEW_AFTER):
        assert ledger.allows
        ledger.answered(PLAIN_S, 2, has_drafts=True, guess_s=0.0)
    assert not ledger.allows
    ledger.answered(PLAIN_S, 1, has_drafts=False, guess_s=0.0)
    assert ledger.allows
