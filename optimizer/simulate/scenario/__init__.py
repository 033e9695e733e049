"""What to simulate, as frozen values that strict YAML is read into.

clients.py   groups of devices, their links, when they ask and how much
servers.py   how many servers, what they admit, measured batches
software.py  the deployed model, drafts, bytes and seconds of our own code
scenario.py  all of it together, with faults and a budget

Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

from optimizer.simulate.scenario.clients import Arrivals, Clients, Lengths, Link
from optimizer.simulate.scenario.scenario import Budget, Fault, Scenario, load_scenario
from optimizer.simulate.scenario.servers import MeasuredSteps, Scaling, Servers, StepPoint
from optimizer.simulate.scenario.software import (
    Deployment,
    DraftingScenario,
    DraftOutcome,
    FlightFrame,
    MeasuredFlight,
    Software,
)

__all__ = [
    "Arrivals",
    "Budget",
    "Clients",
    "Deployment",
    "DraftOutcome",
    "DraftingScenario",
    "Fault",
    "FlightFrame",
    "Lengths",
    "Link",
    "MeasuredFlight",
    "MeasuredSteps",
    "Scaling",
    "Scenario",
    "Servers",
    "Software",
    "StepPoint",
    "load_scenario",
]
