"""A scenario with everything that it names loaded: what a simulation runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from hwprofiles.errors import ProfileError
from hwprofiles.links.profile import LinkProfile
from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.plan import Plan
from optimizer.artifacts.prefill import PrefillPlace
from optimizer.cost.codec import LevelCost, as_ids
from optimizer.cost.levels import EXTRA_LEVELS
from optimizer.errors import ScenarioError
from optimizer.simulate.links import link_profile
from optimizer.simulate.scenario import Clients, Scenario

# Levels that a plan may name and the edge never chooses at run time.
BESIDE_THE_LADDER: Final = frozenset(level.name for level in EXTRA_LEVELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A scenario and its plan with all profiles and level costs.

    `devices`: by name. `links`: by number of the group and name. `levels`: by name.
    """

    scenario: Scenario
    plan: Plan
    devices: Mapping[str, DeviceProfile]
    links: Mapping[tuple[int, str], LinkProfile]
    levels: Mapping[str, LevelCost]

    @property
    def server_device(self) -> DeviceProfile:
        """The servers' device profile."""
        return self.devices[self.scenario.servers.device]

    def place_of(self, group: Clients) -> PrefillPlace:
        """Where a group's prompts are computed."""
        return self.plan.prefill if group.prefill is None else group.prefill

    def hands_over(self, group: Clients) -> bool:
        """Whether a group's answers go on at a lower split when the device's cache is full."""
        context = group.context
        if context is None and self.scenario.deployment is not None:
            context = self.scenario.deployment.context
        return context == "handover"

    @property
    def layers_a_block(self) -> int:
        """Layers of a server's KV block: all from the plan's split on; one where sessions enter at
        several splits."""
        if any(map(self.hands_over, self.scenario.clients)):
            return 1
        return self.plan.model.geometry.num_layers - self.plan.partition.split

    @property
    def cloud_message_s(self) -> float:
        """Seconds of a server's network stack for a round trip, of the scenario or the profile."""
        known_s = self.scenario.software.cloud_message_s
        if known_s is not None:
            return known_s
        figure = self.server_device.overheads.message_s
        return 0.0 if figure is None else figure.effective


def load_setup(
    scenario: Scenario, plan: Plan, levels: Mapping[str, LevelCost], *, folder: Path | None = None
) -> Setup:
    """Load the profiles that a scenario names; its relative paths start at `folder`.

    Raises ScenarioError naming what does not exist or does not fit together.
    """
    names = {name for group in scenario.clients for name in group.devices}
    names.add(scenario.servers.device)
    devices = {}
    for name in sorted(names):
        local = folder / name if folder is not None and (folder / name).is_file() else Path(name)
        devices[name] = _device(str(local) if local.suffix else name)
    links = {
        (index, name): link_profile(name, group.link, folder)
        for index, group in enumerate(scenario.clients)
        for name in group.link.mix
    }
    own = {level.name: level for level in scenario.levels}
    known = {**levels, **own}
    if plan.partition.split == 0:  # frames bring token ids
        known = {name: as_ids(level) for name, level in known.items()}
    setup = Setup(scenario=scenario, plan=plan, devices=devices, links=links, levels=known)
    for group in scenario.clients:
        _check_place(setup, group)
        _check_context(setup, group)
    if plan.level not in setup.levels:
        raise ScenarioError(
            f"level '{plan.level}' has no costs here: known are {', '.join(sorted(setup.levels))}; "
            "a scenario may list others under 'levels'"
        )
    return setup


def _check_place(setup: Setup, group: Clients) -> None:
    """ScenarioError where a group's prompts cannot be computed where it says."""
    plan, place = setup.plan, setup.place_of(group)
    if place == "edge" or plan.partition.split == 0:
        return
    if not plan.edge_is_whole or group.prefill is not None:
        _check_cloud_layers(setup, f"clients {group.name}: prefill {place}")


def _check_context(setup: Setup, group: Clients) -> None:
    """ScenarioError where a group's answers cannot move to the server."""
    if setup.hands_over(group) and setup.plan.partition.split > 0:
        _check_cloud_layers(setup, f"clients {group.name}: context handover")


def _check_cloud_layers(setup: Setup, what: str) -> None:
    """ScenarioError where the servers cannot run every layer."""
    plan = setup.plan
    if plan.edge_is_whole:
        raise ScenarioError(f"{what}: this plan has no server, the device holds every layer")
    if plan.back_start > 0:
        raise ScenarioError(
            f"{what}: the plan's server holds only the layers from {plan.back_start} on"
        )
    if setup.scenario.servers.measured is not None:
        raise ScenarioError(f"{what}: measured steps know nothing of the layers below the split")


@lru_cache(maxsize=32)
def _device(name: str) -> DeviceProfile:
    """Cached, because a search sets up dozens of simulations and reading takes half a second."""
    try:
        return load_device(name)
    except ProfileError as error:
        raise ScenarioError(str(error)) from error
