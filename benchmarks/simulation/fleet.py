"""500 simulated clients over 1 to 16 replicas behind the door, against bounds from queueing theory.

    python -m benchmarks.simulation.fleet

Answers: every client reads for an exponential time, asks, and gets an answer of constant length.
No fleet can bring more tokens a second than its servers at their best batch, nor more than clients
that never wait for each other ask for (Denning and Buzen 1978, "The operational analysis of
queueing network models", Computing Surveys 10:225, asymptotic bounds). Little's law gives the time
from question to question as clients over throughput.

Steps: Poisson clients ask for one token each, of servers that take one row at a time, so every
request is one service of constant length. Of equal services no assignment starts the k-th one
earlier than one queue for all servers does. So the mean wait is at least that of M/D/c, whose queue
at the end of a service follows from that at its beginning (Crommelin 1932, "Delay probability
formulae when the holding times are constant"). With one server it is the M/D/1 of Pollaczek and
Khinchine. Utilisation law: servers are busy for rate times service.

Tables on stderr, JSON last.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.edge.facts import machine
from optimizer.artifacts.plan import Plan
from optimizer.cost.cloud import SessionRows
from optimizer.cost.levels import DEFAULT_LEVELS
from optimizer.policy.batching import Scheduler
from optimizer.policy.retry import RetryPolicy
from optimizer.simulate.assemble import plan_of
from optimizer.simulate.measures import measure
from optimizer.simulate.record import CLOUD, QUEUE, Record
from optimizer.simulate.scenario import (
    Arrivals,
    Clients,
    Deployment,
    Lengths,
    Link,
    Scenario,
    Servers,
)
from optimizer.simulate.server_setup import back_times, sample_s
from optimizer.simulate.setup import Setup, load_setup
from optimizer.simulate.simulation import simulate

CLIENTS = 500
REPLICAS = (1, 2, 4, 8, 16)
THINK_S = 10.0
PROMPT, ANSWER = 32, 64
LOAD = 0.8  # of each server, where requests are one step
DEPLOYMENT = Deployment(model="llama-3.1-8b", split=8, back_bits=8, level="q3", max_tokens=1024)
# Admission holds nobody up: the bounds are of the batches.
SERVERS = Servers(
    device="l4-24gb", max_sessions=4096, kv_memory_bytes=1e13, waiting=4096, door=True
)
GROUP = Clients(
    name="clients",
    count=CLIENTS,
    devices={"laptop-apple-m2-16gb": 1.0},
    link=Link(mix={"lan": 1.0}, quantile=0.5),
    arrivals=Arrivals(kind="closed", think_s=THINK_S),
    prompt_tokens=Lengths(median=PROMPT),
    output_tokens=Lengths(median=ANSWER),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=list(REPLICAS))
    parser.add_argument("--seconds", type=float, default=600.0, help="of the answers")
    parser.add_argument("--requests", type=int, default=50_000, help="of the steps")
    parser.add_argument("--only", choices=["answers", "steps"], help="one of the two tables")
    arguments = parser.parse_args()
    facts = machine()
    found: dict[str, list[dict[str, float]]] = {"answers": [], "steps": []}
    sizes = {"answers": (answers_row, arguments.seconds), "steps": (steps_row, arguments.requests)}
    for kind in [arguments.only] if arguments.only else sizes:
        row_of, size = sizes[kind]
        for replicas in arguments.replicas:
            row = row_of(replicas, size)
            found[kind].append(row)
            if len(found[kind]) == 1:
                print(f"{kind}: {', '.join(row)}", file=sys.stderr)
            cells = (f"{value:,.4g}" for value in row.values())
            print(f"| {' | '.join(cells)} |", file=sys.stderr, flush=True)
    print(json.dumps({"command": " ".join(sys.argv), "machine": facts, **found}))
    return 0


def setup_of(servers: Servers, group: Clients, seconds: float) -> Setup:
    """The scenario of one row."""
    scenario = Scenario(
        name="fleet",
        clients=(group,),
        servers=servers,
        duration_s=seconds,
        seed=1,
        patience=RetryPolicy(connect_s=3600.0),
    )
    plan: Plan = plan_of(DEPLOYMENT)
    return load_setup(scenario, plan, {level.name: level for level in DEFAULT_LEVELS})


def answers_row(replicas: int, seconds: float) -> dict[str, float]:
    """Throughput against its bounds, and Little's law from question to question."""
    setup = setup_of(replace(SERVERS, count=replicas), GROUP, seconds)
    record = simulate(setup)
    found = measure(setup.scenario, [record])
    # The first half fills the fleet.
    late = [row for row in record.requests if row.asked_s + row.e2e_s >= seconds / 2]
    ended = [row for row in late if row.asked_s + row.e2e_s < seconds]
    rate = len(ended) / (seconds / 2)
    tokens_per_s = ANSWER * rate
    alone_s = answer_alone_s()
    shares = np.bincount([row.server for row in record.requests], minlength=replicas)
    return {
        "replicas": replicas,
        "tokens_per_s": tokens_per_s,
        "bound_of_servers": replicas * best_steps_per_s(setup) * ANSWER / (ANSWER - 1),
        "bound_of_clients": CLIENTS * ANSWER / (THINK_S + alone_s),
        "mean_answer_s": float(np.mean([row.e2e_s for row in ended])),
        "by_littles_law_s": CLIENTS / rate - THINK_S,
        "tbt_p95_s": found.tbt_s.p95,
        "busy": found.server_utilisation,
        "largest_share": float(shares.max() * replicas / shares.sum()),
        "events": found.events,
        "cpu_s": found.cpu_s,
    }


def answer_alone_s() -> float:
    """From question to last token with nobody else there, over a connection that is open."""
    alone = replace(GROUP, count=1, arrivals=replace(GROUP.arrivals, think_s=1.0))
    record = simulate(setup_of(SERVERS, alone, 30.0))
    return min(row.e2e_s for row in record.requests[1:])


def best_steps_per_s(setup: Setup) -> float:
    """Most steps a second of one server: its best batch, every session at its shortest."""
    back, limits = back_times(setup), setup.scenario.servers.batch
    return max(
        count / (back.seconds([SessionRows(1, PROMPT)] * count, count) + count * sample_s(setup))
        for count in range(1, limits.max_sessions + 1)
    )


def steps_row(replicas: int, requests: int) -> dict[str, float]:
    """Waits against M/D/c and M/D/1, and the utilisation law."""
    one_at_a_time = Scheduler(max_rows=1, max_sessions=1, min_prefill_rows=1)
    servers = replace(SERVERS, count=replicas, batch=one_at_a_time)
    service_s = step_service_s(setup_of(servers, GROUP, 1.0))
    seconds = requests * service_s / (LOAD * replicas)
    asks = replace(
        GROUP,
        arrivals=Arrivals(kind="poisson", rate_per_s=LOAD * replicas / service_s / CLIENTS),
        prompt_tokens=Lengths(median=1),
        output_tokens=Lengths(median=1),
        same_beginning="none",
    )
    setup = setup_of(servers, asks, seconds)
    record = simulate(setup)
    found = measure(setup.scenario, [record])
    rate = record.tokens_in_time / seconds
    shares = np.bincount([row.server for row in record.requests], minlength=replicas)
    return {
        "replicas": replicas,
        "requests": record.firsts,
        "mean_wait_services": mean_wait_s(record) / service_s,
        "m_d_c_services": waits_of_md(replicas, LOAD),
        "m_d_1_services": waits_of_md(1, LOAD),
        "busy": found.server_utilisation,
        "rate_times_service": rate * service_s / replicas,
        "service_s": service_s,
        "largest_share": float(shares.max() * replicas / shares.sum()),
        "events": found.events,
        "cpu_s": found.cpu_s,
    }


def step_service_s(setup: Setup) -> float:
    """One request of one row on a server: decoding, batch, sampling."""
    level = setup.levels[setup.plan.level]
    hidden = setup.plan.model.geometry.hidden_size
    decode_s = level.of_prompt.decode_fixed_s + hidden * level.of_prompt.decode_s_per_element
    return decode_s + back_times(setup).seconds([SessionRows(1, 0)], 1) + sample_s(setup)


def mean_wait_s(record: Record) -> float:
    """Mean seconds in the servers' queues."""
    assert record.firsts == len(record.requests)
    return record.first_parts_s[QUEUE] / record.firsts if record.first_parts_s[CLOUD] else math.nan


def waits_of_md(servers: int, load: float, most: int = 400) -> float:
    """Mean wait of M/D/c, in services: who is there after a service are those that waited at its
    beginning and those that came meanwhile."""
    arrivals = np.zeros(most)
    arrivals[0] = math.exp(-load * servers)
    for count in range(1, most):
        arrivals[count] = arrivals[count - 1] * load * servers / count
    there = np.zeros(most)
    there[0] = 1.0
    for _ in range(100_000):
        left = np.concatenate(([there[: servers + 1].sum()], there[servers + 1 :], [0.0] * servers))
        after: Any = np.convolve(left, arrivals)[:most]
        if np.abs(after - there).sum() < 1e-12:
            break
        there = after
    mean = float(np.arange(most) @ there)
    return (mean - load * servers) / (load * servers)


if __name__ == "__main__":
    sys.exit(main())
