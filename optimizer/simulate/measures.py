"""Quantiles, shares and rates of one or several replications: what people and programs read.

To add a metric: observe it where it happens (into `record`), then add a field to `Measures` and its
line to `measure`. A field made by `shown` appears on the terminal and on the HTML page by itself.
JSON and the sweep's CSV hold every field.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.cost.money import PER_MILLION
from optimizer.simulate.record import PARTS, Record
from optimizer.simulate.scenario import Scenario

Seconds = npt.NDArray[np.float64]


def shown(label: str, form: str) -> Any:
    """A field of `Measures` that people see: `label`, and its value in the format `form`."""
    return field(metadata={"label": label, "form": form})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Three quantiles, in seconds. All are 0 without values."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Seconds) -> Spread:
        """The quantiles of a sample, linear between its values."""
        if not values.size:
            return cls(p50=0.0, p95=0.0, p99=0.0)
        return cls(**dict(zip(("p50", "p95", "p99"), _quantiles(values), strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Everything a simulation says, in numbers. Pooled over replications.

    `first_in_time`: the share of requests whose first token came within the TTFT budget; a request
    that never got one was late. `further_in_time`: the share of further tokens within the TBT
    budget; a request that ended before its answer did counts as one late token. `within_budget`:
    the smaller of the two, so that many tokens in time hide no late first ones. A budget that is
    not set is kept by every token that came. `breakdown_*_s`: mean seconds of each part
    of a first token, and of a step (a round trip, which may bring several tokens with drafting).
    `prompt_ids`: prompt tokens that went as ids, `id_bytes`: the bytes of their frames.
    `split_moves`: how often a split moved, `move_bytes`: of what the server got then.
    Utilisation and occupancy are means over the servers and the time that each is paid for.
    `servers`: the most at once. `serving_*`: how many took sessions, over the scenario's duration;
    `server_hours`: paid for, those that start and drain included.
    `work_cost_per_million_tokens`: servers' busy seconds and devices' energy, prompts included, by
    the scenario's prices; None without prices. `energy_left_out`: devices whose watts are unknown.
    `joules_per_token`: what sensors of devices measure from question to last token, waiting
    included; None where no device has measured watts. `no_sensor`: devices without.
    """

    ttft_s: Spread
    tbt_s: Spread
    e2e_s: Spread
    first_in_time: float = shown("first tokens in time", "{:.1%}")
    further_in_time: float = shown("further tokens in time", "{:.1%}")
    within_budget: float
    tokens_per_s: float = shown("tokens a second", "{:,.1f}")
    requests: dict[str, int]
    tokens: int
    tokens_per_round_trip: float = shown("tokens a round trip", "{:.2f}")
    breakdown_first_s: dict[str, float]
    breakdown_step_s: dict[str, float]
    server_utilisation: float = shown("servers busy", "{:.1%}")
    mean_batch_sessions: float = shown("sessions a batch", "{:.1f}")
    mean_batch_rows: float
    kv_occupancy_mean: float = shown("KV memory in use, mean", "{:.1%}")
    kv_occupancy_peak: float = shown("KV memory in use, peak", "{:.1%}")
    peak_sessions: int
    uplink_bytes: int = shown("bytes up", "{:,}")
    downlink_bytes: int = shown("bytes down", "{:,}")
    uplink_bytes_per_token: float = shown("bytes up a token", "{:,.0f}")
    prompt_ids: int = shown("prompt tokens as ids", "{:,}")
    id_bytes: int = shown("bytes of these ids", "{:,}")
    split_moves: int = shown("moves of a split", "{:,}")
    move_bytes: int = shown("bytes sent at moves", "{:,}")
    drafts_accepted: float
    reconnects: int = shown("reconnects", "{:,}")
    level_counts: dict[str, int]
    cost: float = shown("cost of the servers", "{:,.2f}")
    cost_per_million_tokens: float = shown("cost a million tokens", "{:,.2f}")
    work_cost_per_million_tokens: float | None = shown(
        "cost of the work a million tokens", "{:,.4g}"
    )
    energy_left_out: tuple[str, ...] | None
    joules_per_token: float | None = None
    no_sensor: tuple[str, ...] = ()
    clients: int
    servers: int
    serving_least: int = shown("servers, fewest", "{:,}")
    serving_mean: float = shown("servers, mean", "{:,.2f}")
    serving_most: int = shown("servers, most", "{:,}")
    server_hours: float = shown("server hours", "{:,.2f}")
    duration_s: float
    replications: int
    seed: int
    events: int
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, every number finite; without the cost of the work where it has no price."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def _is_idle(self, name: str) -> bool:
        """Whether a figure says nothing: no prompt went as ids, no split moved, the servers stayed
        the same, nothing has a price."""
        if name in ("prompt_ids", "id_bytes"):
            return not self.prompt_ids
        if name in ("split_moves", "move_bytes"):
            return not self.split_moves
        if name in ("serving_least", "serving_mean", "serving_most", "server_hours"):
            return self.serving_least == self.serving_most
        return getattr(self, name) is None

    def _label(self, name: str, label: str) -> str:
        if name == "work_cost_per_million_tokens" and self.energy_left_out:
            return f"{label}, without the energy of {', '.join(self.energy_left_out)}"
        return label

    def for_people(self) -> list[tuple[str, str]]:
        """Label and formatted value of how requests ended, and of every field made by `shown`."""
        outcomes = ", ".join(
            f"{count:,} {name.replace('_', ' ')}"
            for name, count in self.requests.items()
            if name != "asked"
        )
        return [("requests", outcomes or "none")] + [
            (
                self._label(one.name, one.metadata["label"]),
                one.metadata["form"].format(getattr(self, one.name)),
            )
            for one in fields(self)
            if "label" in one.metadata and not self._is_idle(one.name)
        ]


def ttft_s(records: Sequence[Record]) -> Seconds:
    """Seconds to the first token of every request that got one."""
    values = np.array([row.ttft_s for record in records for row in record.requests])
    return values[np.isfinite(values)] if values.size else values


def tbt_s(records: Sequence[Record]) -> Seconds:
    """Seconds between successive tokens; 0 between tokens that came together."""
    return np.concatenate(
        [np.frombuffer(record.gaps_s) for record in records if record.gaps_s] or [np.empty(0)]
    )


def e2e_s(records: Sequence[Record]) -> Seconds:
    """Seconds from question to last token of every request that ended."""
    values = np.array([row.e2e_s for record in records for row in record.requests])
    return values[np.isfinite(values)] if values.size else values


def measure(scenario: Scenario, records: Sequence[Record]) -> Measures:
    """Summarise replications of one scenario."""
    firsts, gaps, ends = ttft_s(records), tbt_s(records), e2e_s(records)
    sums = [server for record in records for server in record.servers]
    outcomes: Counter[str] = Counter(row.outcome for record in records for row in record.requests)
    asked = sum(outcomes.values())
    first_in_time, further_in_time = _in_time(scenario, records, firsts, gaps)
    tokens = len(firsts) + len(gaps)
    duration_s, count = scenario.duration_s, len(records)
    server_s = sum(server.paid_s for server in sums)  # 0: the whole model on the edge
    steps = sum(record.steps for record in records)
    round_trips = steps - sum(record.ahead for record in records)
    batches = sum(server.batches for server in sums)
    block_s = sum(server.paid_s * server.total_blocks for server in sums)
    drafted = sum(record.drafted for record in records)
    levels: Counter[str] = Counter()
    for record in records:
        levels.update(record.level_counts)
    cost = scenario.servers.cost_per_hour * server_s / 3600
    up_bytes = sum(record.up_bytes for record in records)
    return Measures(
        ttft_s=Spread.of(firsts),
        tbt_s=Spread.of(gaps),
        e2e_s=Spread.of(ends),
        first_in_time=first_in_time,
        further_in_time=further_in_time,
        within_budget=min(first_in_time, further_in_time),
        tokens_per_s=sum(record.tokens_in_time for record in records) / (duration_s * count),
        requests={"asked": asked, **outcomes},
        tokens=tokens,
        tokens_per_round_trip=tokens / max(round_trips + len(firsts), 1),
        breakdown_first_s=_means([record.first_parts_s for record in records], len(firsts)),
        breakdown_step_s=_means([record.step_parts_s for record in records], steps),
        server_utilisation=sum(server.busy_s for server in sums) / max(server_s, 1e-9),
        mean_batch_sessions=sum(server.batch_sessions for server in sums) / max(batches, 1),
        mean_batch_rows=sum(server.rows for server in sums) / max(batches, 1),
        kv_occupancy_mean=sum(server.kv_block_seconds for server in sums) / max(block_s, 1e-9),
        kv_occupancy_peak=max(
            (server.kv_peak_blocks / server.total_blocks for server in sums), default=0.0
        ),
        peak_sessions=max((server.peak_sessions for server in sums), default=0),
        uplink_bytes=up_bytes,
        downlink_bytes=sum(record.down_bytes for record in records),
        uplink_bytes_per_token=up_bytes / max(tokens, 1),
        prompt_ids=sum(record.prompt_ids for record in records),
        id_bytes=sum(record.id_bytes for record in records),
        split_moves=sum(row.moves for record in records for row in record.requests),
        move_bytes=sum(row.move_bytes for record in records for row in record.requests),
        drafts_accepted=sum(record.accepted for record in records) / max(drafted, 1),
        reconnects=sum(record.reconnects for record in records),
        level_counts=dict(levels),
        cost=cost,
        cost_per_million_tokens=1e6 * cost / max(tokens, 1),
        work_cost_per_million_tokens=_work_cost(scenario, records, tokens),
        energy_left_out=_without_energy(scenario, records),
        joules_per_token=_joules_per_token(records),
        no_sensor=tuple(sorted({name for record in records for name in record.no_sensor})),
        clients=scenario.num_clients,
        servers=max((one.paid for record in records for one in record.replicas), default=0),
        **_serving(scenario, records),
        server_hours=server_s / 3600,
        duration_s=duration_s,
        replications=count,
        seed=scenario.seed,
        events=sum(record.events for record in records),
        wall_s=sum(record.wall_s for record in records),
        cpu_s=sum(record.cpu_s for record in records),
        peak_memory_bytes=max(record.peak_memory_bytes for record in records),
    )


def _serving(scenario: Scenario, records: Sequence[Record]) -> dict[str, Any]:
    """How many servers took sessions: the fewest, the mean over time, and the most."""
    counts, server_s = [], 0.0
    for record in records:
        ends_s = [one.at_s for one in record.replicas[1:]] + [scenario.duration_s]
        for one, end_s in zip(record.replicas, ends_s, strict=True):
            lasts_s = min(end_s, scenario.duration_s) - one.at_s
            if lasts_s > 0:
                counts.append(one.serving)
                server_s += one.serving * lasts_s
    return {
        "serving_least": min(counts, default=0),
        "serving_mean": server_s / (scenario.duration_s * len(records)),
        "serving_most": max(counts, default=0),
    }


def _work_cost(scenario: Scenario, records: Sequence[Record], tokens: int) -> float | None:
    """Money for a million tokens: the seconds that servers were busy, the devices' energy."""
    prices = scenario.prices
    if not prices.are_given:
        return None
    busy_s = sum(server.busy_s for record in records for server in record.servers)
    joules = sum(record.edge_joules for record in records)
    return PER_MILLION * float(prices.cost(cloud_s=busy_s, joules=joules)) / max(tokens, 1)


def _joules_per_token(records: Sequence[Record]) -> float | None:
    """Of the devices that have a sensor."""
    tokens = sum(record.sensor_tokens for record in records)
    return sum(record.sensor_joules for record in records) / tokens if tokens else None


def _without_energy(scenario: Scenario, records: Sequence[Record]) -> tuple[str, ...] | None:
    """Devices whose energy has a price and no watts; None: there is none."""
    names = sorted({name for record in records for name in record.no_watts})
    return tuple(names) if names and scenario.prices.energy_per_kwh else None


def _in_time(
    scenario: Scenario, records: Sequence[Record], firsts: Seconds, gaps: Seconds
) -> tuple[float, float]:
    """Shares of first and of further tokens that came in time; see `Measures`."""
    budget = scenario.budget
    rows = [row for record in records for row in record.requests]
    cut = sum(row.outcome != "done" and math.isfinite(row.ttft_s) for row in rows)
    first = int(np.count_nonzero(firsts <= (budget.ttft_s or math.inf)))
    further = int(np.count_nonzero(gaps <= (budget.tbt_s or math.inf)))
    return _share(first, len(rows)), _share(further, len(gaps) + cut)


def _share(part: int, whole: int) -> float:
    """1 where there is nothing to be late."""
    return part / whole if whole else 1.0


def _means(sums: Sequence[Sequence[float]], count: int) -> dict[str, float]:
    totals = np.sum(sums, axis=0) / max(count, 1)
    return dict(zip(PARTS, map(float, totals), strict=True))


def _quantiles(values: Seconds) -> list[float]:
    return [float(value) for value in np.quantile(values, (0.5, 0.95, 0.99))]
