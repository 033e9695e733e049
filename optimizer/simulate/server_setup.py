"""A simulated server from a setup: its scheduler, admission rule, batch times and KV blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from simpy import Environment

from optimizer.cost.cloud import back_kv_bits
from optimizer.cost.cloud import sample_s as modelled_sample_s
from optimizer.errors import ScenarioError
from optimizer.policy.admission import AdmissionRule
from optimizer.simulate.server import SimulatedServer
from optimizer.simulate.setup import Setup
from optimizer.simulate.times import BackTimes, MeasuredBack, ModelledBack

# Between the seeds of two servers, so that no two of them draw the same batches.
SEED_STRIDE: Final = 104_729


def make_server(env: Environment, setup: Setup, *, seed: int, number: int) -> SimulatedServer:
    """Server `number` of the scenario. Raises ScenarioError when its memory holds no KV block."""
    servers, plan = setup.scenario.servers, setup.plan
    geometry = plan.model.geometry
    block_bytes = geometry.kv_bytes(
        num_layers=setup.layers_a_block,
        num_tokens=servers.block_tokens,
        kv_bits=_kv_bits(setup),
    )
    total_blocks = int(servers.kv_memory_bytes // block_bytes)
    if total_blocks < 1:
        raise ScenarioError(f"servers: kv_memory_bytes holds no block ({block_bytes} bytes each)")
    server = SimulatedServer(
        env,
        scheduler=servers.batch,
        admission=AdmissionRule(max_sessions=servers.max_sessions, max_waiting=servers.waiting),
        back=back_times(setup, seed + SEED_STRIDE * number),
        total_blocks=total_blocks,
        sample_s=sample_s(setup),
        horizon_s=setup.scenario.duration_s,
        max_wait_s=servers.max_wait_s,
    )
    server.number = number
    return server


def back_times(setup: Setup, seed: int | None = None) -> BackTimes:
    """Batch times of one server. Without a seed, measured batches do not vary."""
    servers = setup.scenario.servers
    if servers.measured is None:
        return ModelledBack(setup.server_device, setup.plan, kv_bits=_kv_bits(setup))
    if seed is None:
        return MeasuredBack(replace(servers.measured, spread=()))
    return MeasuredBack(servers.measured, seed=seed)


def sample_s(setup: Setup) -> float:
    """Seconds of drawing one token on a server: the scenario's, or the cost model's."""
    known_s = setup.scenario.software.sample_s
    if known_s is not None:
        return known_s
    return modelled_sample_s(setup.server_device, setup.plan.model.geometry, num_logits=1)


def _kv_bits(setup: Setup) -> int:
    return setup.scenario.servers.kv_bits or back_kv_bits(
        setup.server_device, setup.plan.partition.back_bits
    )
