"""One replication: build a scenario's clients and servers, run every event, keep the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from simpy import Environment
from simpy.events import Timeout

from hwprofiles.errors import ProfileError
from hwprofiles.links.profile import LinkProfile
from hwprofiles.peak_memory import peak_memory_bytes
from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.plan import Plan
from optimizer.cost.cloud import SessionRows, back_kv_bits, sample_s
from optimizer.cost.codec import LevelCost
from optimizer.cost.levels import EXTRA_LEVELS
from optimizer.errors import ScenarioError
from optimizer.simulate.client import Client
from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.links import (
    DRAWN_HOURS,
    LinkLanes,
    SharedLane,
    SharedPipe,
    link_profile,
    link_shape,
    own_lanes,
)
from optimizer.simulate.ports import Controller, Parts, RoundParts
from optimizer.simulate.record import Record
from optimizer.simulate.scenario import Clients, Scenario
from optimizer.simulate.server import Server
from optimizer.simulate.times import BackTimes, FrontTimes, LevelTimes, MeasuredBack, ModelledBack
from optimizer.simulate.workload import ClientSpec, client_specs

BESIDE_THE_LADDER = frozenset(level.name for level in EXTRA_LEVELS)  # never chosen at run time
TYPICAL_POSITION = 256  # where the length of drafts is decided
NUM_SLICES = 200  # how often progress is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A scenario with everything it names loaded: what a simulation runs on."""

    scenario: Scenario
    plan: Plan
    devices: Mapping[str, DeviceProfile]
    links: Mapping[tuple[int, str], LinkProfile]
    levels: Mapping[str, LevelCost]


def load_setup(
    scenario: Scenario, plan: Plan, levels: Mapping[str, LevelCost], *, folder: Path | None = None
) -> Setup:
    """Load the profiles that a scenario names; `folder` is where its relative paths start.

    Raises ScenarioError naming what is not there or does not fit together.
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
    setup = Setup(
        scenario=scenario, plan=plan, devices=devices, links=links, levels={**levels, **own}
    )
    if plan.level not in setup.levels:
        raise ScenarioError(
            f"level '{plan.level}' has no costs here: known are {', '.join(sorted(setup.levels))}; "
            "a scenario may list others under 'levels'"
        )
    return setup


@lru_cache(maxsize=32)
def _device(name: str) -> DeviceProfile:
    """Kept, because a search sets up dozens of simulations and reading takes half a second."""
    try:
        return load_device(name)
    except ProfileError as error:
        raise ScenarioError(str(error)) from error


def simulate(
    setup: Setup,
    parts: Parts,
    *,
    replication: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Record:
    """Run one replication; `progress` is told the share of simulated time that has passed."""
    started_s, computed_s = time.perf_counter(), time.process_time()
    scenario, plan = setup.scenario, setup.plan
    seed = scenario.seed + 7919 * replication
    env = Environment()
    record = Record()
    num_servers = 0 if plan.edge_is_whole else scenario.servers.count
    servers = [_server(env, setup, parts, seed, number) for number in range(num_servers)]
    world = SimulationContext(
        env=env,
        scenario=scenario,
        plan=plan,
        servers=servers,
        levels={
            name: LevelTimes(level, plan.model.geometry.hidden_size)
            for name, level in setup.levels.items()
        },
        cloud_message_s=_cloud_message_s(setup),
        record=record,
        controller=_controller(setup, parts),
        drafting=scenario.drafting if _drafts(plan, scenario) else None,
        next_chunk=parts.next_chunk if scenario.adaptive_chunks else None,
        keep_journal=any(fault.kind == "server_loss" for fault in scenario.faults),
    )
    for fault in scenario.faults:
        if fault.kind == "server_loss" and servers:
            server = servers[fault.server]
            _at(env, fault.at_s, server.lose)
            _at(env, fault.at_s + fault.duration_s, server.restore)
    fronts = {
        name: FrontTimes(setup.devices[name], plan, scenario.software.edge_message_s)
        for group in scenario.clients
        for name in group.devices
    }
    ways = ClientLinks(env, setup, seed)
    seeded = scenario if replication == 0 else _reseeded(scenario, seed)
    lengths = _DraftLengths(setup, parts, fronts)
    clients = [
        Client(
            world,
            spec,
            Device(
                front=fronts[spec.device],
                lanes=ways.lanes(spec),
                draft_length=lengths.of(spec) if world.drafting is not None else 0,
                seed=seed * 1_000_003 + spec.number,
            ),
            recorded=spec.number == 0,
        )
        for spec in client_specs(seeded, longest=plan.max_tokens)
    ]
    end_s = scenario.duration_s + scenario.drain_s
    for index in range(1, NUM_SLICES + 1):
        until_s = end_s * index / NUM_SLICES
        if until_s > scenario.duration_s and env.peek() == float("inf"):
            break
        env.run(until=until_s)
        progress(index / NUM_SLICES)
    for client in clients:
        client.abandon()
    for server in servers:
        server.finish()
        record.servers.append(server.sums)
    record.requests.sort(key=lambda row: (row.asked_s, row.client))
    record.events = next(env._eid)
    record.wall_s = time.perf_counter() - started_s
    record.cpu_s = time.process_time() - computed_s
    record.peak_memory_bytes = peak_memory_bytes()
    progress(1.0)
    return record


def _back_times(setup: Setup, seed: int | None = None) -> BackTimes:
    """Batches of one server; without a seed, measured ones at their middle."""
    servers = setup.scenario.servers
    if servers.measured is not None:
        if seed is None:
            return MeasuredBack(replace(servers.measured, spread=()))
        return MeasuredBack(servers.measured, seed=seed)
    return ModelledBack(setup.devices[servers.device], setup.plan, kv_bits=_server_kv_bits(setup))


def _server_kv_bits(setup: Setup) -> int:
    servers = setup.scenario.servers
    return servers.kv_bits or back_kv_bits(setup.devices[servers.device])


def _cloud_message_s(setup: Setup) -> float:
    known_s = setup.scenario.software.cloud_message_s
    if known_s is not None:
        return known_s
    figure = setup.devices[setup.scenario.servers.device].overheads.message_s
    return 0.0 if figure is None else figure.effective


def _sample_s(setup: Setup) -> float:
    known_s = setup.scenario.software.sample_s
    if known_s is not None:
        return known_s
    device = setup.devices[setup.scenario.servers.device]
    return sample_s(device, setup.plan.model.geometry, num_logits=1)


def _server(env: Environment, setup: Setup, parts: Parts, seed: int, number: int) -> Server:
    servers, plan = setup.scenario.servers, setup.plan
    back = _back_times(setup, seed + 104_729 * number)  # no two servers draw the same batches
    geometry = plan.model.geometry
    block_bytes = geometry.kv_bytes(
        num_layers=geometry.num_layers - plan.partition.split,
        num_tokens=servers.block_tokens,
        kv_bits=_server_kv_bits(setup),
    )
    total_blocks = int(servers.kv_memory_bytes // block_bytes)
    if total_blocks < 1:
        raise ScenarioError(f"servers: kv_memory_bytes holds no block ({block_bytes} bytes each)")
    return Server(
        env,
        scheduler=parts.scheduler(servers.batch),
        waiting=parts.waiting,
        admission=parts.admission(servers),
        back=back,
        total_blocks=total_blocks,
        sample_s=_sample_s(setup),
        horizon_s=setup.scenario.duration_s,
        max_wait_s=servers.max_wait_s,
    )


class ClientLinks:
    """Every client's way to the servers: a link of its own, or a lane of its group's shared one."""

    def __init__(self, env: Environment, setup: Setup, seed: int) -> None:
        self._setup = setup
        self._seed = seed
        self._outages = [
            [
                (fault.at_s, fault.at_s + fault.duration_s)
                for fault in setup.scenario.faults
                if fault.kind == "link_outage" and fault.target in ("", group.name)
            ]
            for group in setup.scenario.clients
        ]
        self._shared: dict[int, tuple[SharedPipe, SharedPipe]] = {}
        for index, group in enumerate(setup.scenario.clients):
            if group.link.shared:
                shape = link_shape(setup.links[index, _only(group)], group.link, seed=seed)
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


class _DraftLengths:
    """How many drafts a client's steps carry: the edge's own rule on what its parts take."""

    def __init__(self, setup: Setup, parts: Parts, fronts: Mapping[str, FrontTimes]) -> None:
        self._setup = setup
        self._choose = parts.draft_length
        self._fronts = fronts
        self._known: dict[tuple[int, str, str], int] = {}

    def of(self, spec: ClientSpec) -> int:
        """The number for one client, the same for all with its device and link."""
        drafting = self._setup.scenario.drafting
        if self._choose is None or not drafting.best_length:
            return drafting.length
        key = (spec.group, spec.device, spec.link)
        if key not in self._known:
            chances = (drafting.acceptance,) * drafting.length
            self._known[key] = self._choose(chances, self._round(spec))
        return self._known[key]

    def _round(self, spec: ClientSpec) -> RoundParts:
        setup, front = self._setup, self._fronts[spec.device]
        hidden_size = setup.plan.model.geometry.hidden_size
        level = LevelTimes(setup.levels[setup.plan.level], hidden_size)
        one, two = level.frame(1), level.frame(2)
        link = setup.links[spec.group, spec.link]
        front_s = front.seconds(1, TYPICAL_POSITION)
        back, sampled_s = _back_times(setup), _sample_s(setup)
        back_s = back.seconds([SessionRows(1, TYPICAL_POSITION)], 1)
        further_back_s = back.seconds([SessionRows(2, TYPICAL_POSITION)], 2) - back_s
        row_s = front_s + two.encode_s - one.encode_s
        return RoundParts(
            edge_row_s=row_s,
            guess_s=setup.scenario.drafting.draft_s,
            # What does not grow with the rows: the link, both stacks, the first row's surplus.
            rtt_s=link.rtt_s.p50
            + front.message_s
            + _cloud_message_s(setup)
            + (front_s + one.encode_s - row_s),
            up_bytes_per_s=link.up_bytes_per_s.p50,
            frame_bytes=2 * one.num_bytes - two.num_bytes,
            row_bytes=two.num_bytes - one.num_bytes,
            cloud_step_s=one.decode_s + back_s + sampled_s,
            cloud_row_s=two.decode_s - one.decode_s + further_back_s + sampled_s,
        )


def _controller(setup: Setup, parts: Parts) -> Controller | None:
    """The edge's controller over the plan's level and those below it, if the scenario has it on."""
    deadline_s = setup.scenario.deadline_tbt_s
    if deadline_s is None:
        return None
    if parts.controller is None:
        raise ScenarioError("deadline_tbt_s needs the edge's controller, and none was given")
    hidden_size = setup.plan.model.geometry.hidden_size
    planned = setup.levels[setup.plan.level].bits_per_element
    ladder = sorted(
        (
            (level.name, level.bits_per_element * hidden_size / 8)
            for level in setup.levels.values()
            if level.bits_per_element <= planned and level.name not in BESIDE_THE_LADDER
        ),
        key=lambda rung: -rung[1],
    )
    return parts.controller(deadline_s=deadline_s, ladder=ladder, start=0)


def _only(group: Clients) -> str:
    return next(iter(group.link.mix))


def _drafts(plan: Plan, scenario: Scenario) -> bool:
    drafting = scenario.drafting
    some = drafting.length > 0 or bool(drafting.outcomes)
    return plan.drafting != "off" and not plan.edge_is_whole and some


def _reseeded(scenario: Scenario, seed: int) -> Scenario:
    return replace(scenario, seed=seed)


def _at(env: Environment, at_s: float, call: Callable[[], None]) -> None:
    Timeout(env, at_s).callbacks.append(lambda _: call())
