"""A scenario's keys: the product's own values where it has them, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.errors import ScenarioError
from optimizer.policy.batching import Scheduler
from optimizer.policy.retry import RetryPolicy
from optimizer.simulate.scenario import DraftingScenario, Scenario, load_scenario

TEXT = """
name: every key that the policies share
deployment: {model: smollm2-135m, split: 10}
clients:
  - name: near
    count: 3
    devices: {raspberry-pi-5-8gb: 1}
    link: {mix: {lan: 1}}
    arrivals: {kind: closed, think_s: 1}
    prompt_tokens: {median: 50}
    output_tokens: {median: 20}
servers: {device: l4-24gb, batch: {max_rows: 48, max_sessions: 4, min_prefill_rows: 16}}
drafting: {acceptance: 0.7, length: 6}
patience: {connect_s: 6, recover_s: 20, first_backoff_s: 0.05, max_backoff_s: 1.5, close_s: 0.5}
"""


def loaded(folder: Path, text: str) -> Scenario:
    path = folder / "scenario.yaml"
    path.write_text(text)
    return load_scenario(path)


def test_limits_and_patience_are_the_products_own_values(tmp_path: Path) -> None:
    scenario = loaded(tmp_path, TEXT)
    assert scenario.servers.batch == Scheduler(max_rows=48, max_sessions=4, min_prefill_rows=16)
    assert scenario.patience == RetryPolicy(
        connect_s=6.0, recover_s=20.0, first_backoff_s=0.05, max_backoff_s=1.5, close_s=0.5
    )
    assert scenario.drafting == DraftingScenario(acceptance=0.7, length=6)


def test_without_the_keys_the_products_defaults_hold(tmp_path: Path) -> None:
    lines = [line for line in TEXT.splitlines() if not line.startswith(("patience", "servers"))]
    scenario = loaded(tmp_path, "\n".join([*lines, "servers: {device: l4-24gb}"]))
    assert scenario.servers.batch == Scheduler()
    assert scenario.patience == RetryPolicy()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("close_s: 0.5", "attempt_s: 3"), "patience.attempt_s is not simulated"),
        (("close_s: 0.5", "step_s: 3"), "patience.step_s is not simulated"),
        (("max_rows: 48", "max_rows: 0"), "limits must be at least 1"),
        (("close_s", "closes_s"), "unknown key 'patience.closes_s'"),
        (("count: 3", "count: 3\n    context: shift"), "context' must be one of"),
        (("split: 10", "split: 10, context: shift"), "context' must be one of"),
    ],
)
def test_a_key_that_means_nothing_is_refused(
    tmp_path: Path, change: tuple[str, str], reason: str
) -> None:
    with pytest.raises(ScenarioError, match=reason):
        loaded(tmp_path, TEXT.replace(*change))
