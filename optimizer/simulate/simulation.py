"""One replication: make a setup's clients and servers, run every event, keep the record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from simpy import Environment
from simpy.events import Timeout

from hwprofiles.peak_memory import peak_memory_bytes
from optimizer.artifacts.plan import Plan
from optimizer.cost.energy import joules, measured_watts
from optimizer.cost.money import watts_of
from optimizer.policy.level_control import Controller, Rung
from optimizer.simulate.client import SimulatedClient
from optimizer.simulate.client_links import ClientLinks
from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.door import first_blocks
from optimizer.simulate.draft_lengths import DraftLengths
from optimizer.simulate.move_ways import MoveWays
from optimizer.simulate.moving import split_capacities
from optimizer.simulate.prompt_ids import PromptIds
from optimizer.simulate.record import Record
from optimizer.simulate.replicas import SimulatedReplicas
from optimizer.simulate.request_settings import RequestSettings
from optimizer.simulate.scenario import Scenario
from optimizer.simulate.setup import BESIDE_THE_LADDER, Setup
from optimizer.simulate.times import FrontTimes, LevelTimes
from optimizer.simulate.workload import client_specs

NUM_SLICES: Final = 200  # how often progress is told
REPLICATION_STRIDE: Final = 7919  # between the seeds of two replications
CLIENT_STRIDE: Final = 1_000_003  # between the seeds of two simulations' clients


def simulate(
    setup: Setup,
    *,
    replication: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Record:
    """Run one replication; `progress` is told the share of simulated time that has passed.

    The same setup and replication give the same record. Raises ScenarioError.
    """
    started_s, computed_s = time.perf_counter(), time.process_time()
    seed = setup.scenario.seed + REPLICATION_STRIDE * replication
    env = Environment()
    record = Record()
    replicas = SimulatedReplicas(env, setup, record, seed=seed)
    context = _context(env, setup, record, replicas)
    _schedule_losses(env, setup.scenario, replicas)
    fronts = {
        name: FrontTimes(setup.devices[name], setup.plan, setup.scenario.software.edge_message_s)
        for group in setup.scenario.clients
        for name in group.devices
    }
    clients = _clients(context, setup, fronts, seed=seed, replication=replication)
    _run(env, setup.scenario, progress)
    for client in clients:
        client.abandon()
    replicas.finish()
    _count_energy(record, setup, fronts)
    _count_sensors(record, setup, fronts, {one.spec.number: one.spec.device for one in clients})
    record.requests.sort(key=lambda row: (row.asked_s, row.client))
    record.events = next(env._eid)
    record.wall_s = time.perf_counter() - started_s
    record.cpu_s = time.process_time() - computed_s
    record.peak_memory_bytes = peak_memory_bytes()
    progress(1.0)
    return record


def _context(
    env: Environment, setup: Setup, record: Record, replicas: SimulatedReplicas
) -> SimulationContext:
    scenario, plan = setup.scenario, setup.plan
    return SimulationContext(
        env=env,
        scenario=scenario,
        plan=plan,
        addresses=replicas.addresses(),
        levels={
            name: LevelTimes(level, plan.model.geometry.hidden_size)
            for name, level in setup.levels.items()
        },
        cloud_message_s=setup.cloud_message_s,
        record=record,
        controller=_controller(setup),
        drafting=scenario.drafting if _drafts(plan, scenario) else None,
        keep_journal=scenario.may_lose,
        layers_a_block=setup.layers_a_block,
    )


def _schedule_losses(env: Environment, scenario: Scenario, replicas: SimulatedReplicas) -> None:
    """Lose and restore servers as the scenario's faults say."""
    for fault in scenario.faults:
        if fault.kind == "server_loss" and replicas.servers:
            _at(env, fault.at_s, partial(replicas.lose, fault.server))
            if fault.duration_s is not None:
                _at(env, fault.end_s, replicas.servers[fault.server].restore)


def _clients(
    context: SimulationContext,
    setup: Setup,
    fronts: Mapping[str, FrontTimes],
    *,
    seed: int,
    replication: int,
) -> list[SimulatedClient]:
    scenario, plan = setup.scenario, setup.plan
    links = ClientLinks(context.env, setup, seed)
    settings = RequestSettings(setup)
    lengths, ids, ways = DraftLengths(setup, fronts), PromptIds(settings), MoveWays(setup, settings)
    seeded = scenario if replication == 0 else replace(scenario, seed=seed)
    capacities = {
        group.name: split_capacities(plan, hands_over=setup.hands_over(group))
        for group in scenario.clients
    }
    longest = {name: max(found.values()) for name, found in capacities.items()}
    return [
        SimulatedClient(
            context,
            spec,
            Device(
                front=fronts[spec.device],
                lanes=links.lanes(spec),
                draft_length=lengths.of(spec) if context.drafting is not None else 0,
                ahead=lengths.ahead_of(spec) if context.drafting is not None else None,
                num_ids=ids.of(spec),
                kv_frames=ways.of(spec),
                capacities=capacities[scenario.clients[spec.group].name],
                first_block=first_blocks(scenario.clients[spec.group], spec, seed),
                seed=seed * CLIENT_STRIDE + spec.number,
            ),
            recorded=spec.number == 0,
        )
        for spec in client_specs(seeded, longest=longest)
    ]


def _count_energy(record: Record, setup: Setup, fronts: Mapping[str, FrontTimes]) -> None:
    """Put into the record what the devices' computing took, where their watts are known."""
    for name, front in fronts.items():
        watts = watts_of(setup.devices[name])
        if watts is not None:
            record.edge_joules += watts * front.busy_s
        elif front.busy_s:
            record.no_watts.append(name)


def _count_sensors(
    record: Record,
    setup: Setup,
    fronts: Mapping[str, FrontTimes],
    device_of: Mapping[int, str],
) -> None:
    """Put into the record what the devices' sensors would measure while somebody waits for an
    answer, where they have any (`optimizer.cost.energy`). device_of: by the client's number."""
    asked_s, tokens = dict.fromkeys(fronts, 0.0), dict.fromkeys(fronts, 0)
    for row in record.requests:
        name = device_of[row.client]
        asked_s[name] += 0.0 if math.isnan(row.e2e_s) else row.e2e_s
        tokens[name] += row.tokens
    for name, front in fronts.items():
        watts = measured_watts(setup.devices[name])
        if watts is None:
            record.no_sensor.append(name)
            continue
        seconds = max(asked_s[name], front.busy_s)
        record.sensor_joules += float(joules(watts, seconds=seconds, busy_s=front.busy_s))
        record.sensor_busy_joules += watts.working * front.busy_s
        record.sensor_tokens += tokens[name]


def _run(env: Environment, scenario: Scenario, progress: Callable[[float], None]) -> None:
    """Run until the drain is over, or earlier when nothing is left to happen after the duration."""
    end_s = scenario.duration_s + scenario.drain_s
    for index in range(1, NUM_SLICES + 1):
        until_s = end_s * index / NUM_SLICES
        if until_s > scenario.duration_s and env.peek() == float("inf"):
            break
        env.run(until=until_s)
        progress(index / NUM_SLICES)


def _controller(setup: Setup) -> Controller | None:
    """The edge's controller over the plan's level and those below it, if there is a deadline."""
    deadline_s = setup.scenario.deadline_tbt_s
    if deadline_s is None:
        return None
    hidden_size = setup.plan.model.geometry.hidden_size
    planned = setup.levels[setup.plan.level].bits_per_element
    rungs = sorted(
        (
            Rung(name=level.name, bytes_per_row=level.bits_per_element * hidden_size / 8)
            for level in setup.levels.values()
            if level.bits_per_element <= planned and level.name not in BESIDE_THE_LADDER
        ),
        key=lambda rung: -rung.bytes_per_row,
    )
    return Controller(deadline_s=deadline_s, rungs=rungs)


def _drafts(plan: Plan, scenario: Scenario) -> bool:
    drafting = scenario.drafting
    some = drafting.length > 0 or bool(drafting.outcomes or drafting.flights)
    return plan.drafting != "off" and not plan.edge_is_whole and some


def _at(env: Environment, at_s: float, call: Callable[[], None]) -> None:
    Timeout(env, at_s).callbacks.append(lambda _: call())
