"""The scenarios that come as examples load and simulate (for a short while)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.simulate.assemble import Overrides, load_inputs
from optimizer.simulate.simulation import simulate

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "scenarios"
SCENARIOS = sorted(
    path for path in FOLDER.glob("*.yaml") if "\nclients:\n" in path.read_text(encoding="utf-8")
)


def test_there_are_five() -> None:
    assert len(SCENARIOS) == 5


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_an_example_simulates(path: Path) -> None:
    inputs = load_inputs(None, path, Overrides(duration_s=20.0))
    clients = min(inputs.scenario.num_clients, 200)
    faults = tuple(fault for fault in inputs.scenario.faults if fault.at_s < 20)
    inputs = load_inputs(None, path, Overrides(duration_s=20.0, num_clients=clients))
    inputs = replace(inputs, scenario=replace(inputs.scenario, faults=faults, drain_s=20.0))
    record = simulate(inputs.setup())
    assert record.requests
    assert record.firsts
