"""Every client's way to the servers: a link of its own, or a part of its group's shared one."""

from __future__ import annotations

from simpy import Environment

from optimizer.simulate.links import (
    DRAWN_HOURS,
    LinkLanes,
    SharedLane,
    SharedPipe,
    link_shape,
    own_lanes,
)
from optimizer.simulate.scenario import Clients
from optimizer.simulate.setup import Setup
from optimizer.simulate.workload import ClientSpec


class ClientLinks:
    """Makes the links of a simulation. Groups that share a link get it here, once."""

    def __init__(self, env: Environment, setup: Setup, seed: int) -> None:
        self._setup = setup
        self._seed = seed
        self._outages = [
            [
                (fault.at_s, fault.end_s)
                for fault in setup.scenario.faults
                if fault.kind == "link_outage" and fault.target in ("", group.name)
            ]
            for group in setup.scenario.clients
        ]
        self._shared: dict[int, tuple[SharedPipe, SharedPipe]] = {}
        for index, group in enumerate(setup.scenario.clients):
            if group.link.shared:
                shape = link_shape(setup.links[index, _only_link(group)], group.link, seed=seed)
                outages, start_s = self._outages[index], group.link.start_s
                self._shared[index] = (
                    SharedPipe(env, shape.up, outages, start_s=start_s),
                    SharedPipe(env, shape.down, outages, start_s=start_s),
                )

    def lanes(self, spec: ClientSpec) -> LinkLanes:
        """One client's link, up and down."""
        if spec.group in self._shared:
            up, down = self._shared[spec.group]
            return LinkLanes(SharedLane(up, spec.number), SharedLane(down, spec.number))
        link = self._setup.scenario.clients[spec.group].link
        profile = self._setup.links[spec.group, spec.link]
        shape = link_shape(profile, link, seed=self._seed + spec.number % DRAWN_HOURS)
        return own_lanes(
            shape,
            start=spec.start_s,
            outages=self._outages[spec.group],
            start_s=link.start_s,
        )


def _only_link(group: Clients) -> str:
    return next(iter(group.link.mix))
