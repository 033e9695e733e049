"""How sure a simulation's medians are, by the errors of the profiles that it ran on.

A simulation draws the link and the requests, so what these vary by is in its quantiles. What it
takes as given are the seconds of computing, from profiles that are off by something. The mean parts
of a first token and of a step say what the medians depend on (`optimizer.cost.uncertainty`).
Waiting for a busy server grows faster than its steps: near saturation these ranges are too narrow.
Ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hwprofiles.profiles.errors import ErrorKind
from optimizer.artifacts.prediction import PredictedRange
from optimizer.cost.energy import (
    joule_terms,
    joules,
    measured_watts,
    with_energy_error,
    with_power_error,
)
from optimizer.cost.link import LinkPoint
from optimizer.cost.money import PER_MILLION
from optimizer.cost.uncertainty import TermErrors, Terms, range_of, term_errors
from optimizer.simulate.measures import Measures
from optimizer.simulate.record import Record
from optimizer.simulate.setup import Setup

_SAME_LINK = LinkPoint(up_bytes_per_s=1.0, down_bytes_per_s=1.0, rtt_s=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRanges:
    """p10, p50 and p90 of what will be measured as the median, as the devices' energy a token
    (None: no sensor) and as the cost of the work a million tokens (None: no prices)."""

    ttft_s: PredictedRange
    tbt_s: PredictedRange
    joules_per_token: PredictedRange | None = None
    work_cost: PredictedRange | None = None

    def energy_rows(self, no_sensor: Sequence[str]) -> list[tuple[str, str]]:
        """Labels and values for people. no_sensor: devices whose energy is not in it."""
        energy, cost = self.joules_per_token, self.work_cost
        if energy is None:
            rows = [("devices' energy a token", "no sensor")]
        else:
            left = f", {', '.join(no_sensor)}: no sensor" if no_sensor else ""
            text = f"{energy.p50:.3g} J ({energy.p10:.3g} to {energy.p90:.3g}){left}"
            rows = [("devices' energy a token", text)]
        if cost is not None:
            rows.append(("cost of the work, p10 to p90", f"{cost.p10:.4g} to {cost.p90:.4g}"))
        return rows


def latency_ranges(
    setup: Setup, measures: Measures, records: Sequence[Record] = ()
) -> LatencyRanges:
    """The ranges of both medians, of energy and of cost; of several devices the least known one
    counts. records: what the measures are of."""
    batch = max(1, round(measures.mean_batch_sessions))
    stack_s = setup.cloud_message_s
    first, step = measures.breakdown_first_s, measures.breakdown_step_s
    return LatencyRanges(
        ttft_s=_range(setup, measures.ttft_s.p50, first, stack_s, "many_rows", batch),
        tbt_s=_range(setup, measures.tbt_s.p50, step, stack_s, "one_row", batch),
        joules_per_token=_energy_range(setup, measures, batch),
        work_cost=_cost_range(setup, measures, records, batch),
    )


def _energy_range(setup: Setup, measures: Measures, batch: int) -> PredictedRange | None:
    """The mean step's seconds say what the devices' energy depends on; of several devices with a
    sensor the first one's watts do."""
    sensed = [(name, measured_watts(setup.devices[name])) for name in _names(setup)]
    known = [(name, watts) for name, watts in sensed if watts is not None]
    if measures.joules_per_token is None or not known:
        return None
    name, watts = known[0]
    step = measures.breakdown_step_s
    total_s = sum(step.values())
    busy_s = step["edge"] + step["encode"]
    terms = joule_terms(watts, _terms(step, setup.cloud_message_s), busy_s=busy_s)
    errors = with_power_error(_errors(setup, "one_row", batch), setup.devices[name])
    whole = float(joules(watts, seconds=total_s, busy_s=busy_s))
    return errors.range_of(terms, whole).around(measures.joules_per_token)


def _cost_range(
    setup: Setup, measures: Measures, records: Sequence[Record], batch: int
) -> PredictedRange | None:
    """Servers' seconds and devices' energy by their prices."""
    cost, prices = measures.work_cost_per_million_tokens, setup.scenario.prices
    if cost is None:
        return None
    used = sum(record.edge_joules for record in records)
    energy = float(prices.cost(cloud_s=0.0, joules=used))
    energy *= PER_MILLION / max(measures.tokens, 1)
    errors = _errors(setup, "one_row", batch)
    for name in _names(setup):
        errors = max(
            errors,
            with_energy_error(_errors(setup, "one_row", batch), setup.devices[name]),
            key=lambda item: item.edge,
        )
    return errors.range_of(Terms(edge=energy, cloud=max(cost - energy, 0.0)), cost)


def _range(
    setup: Setup,
    median_s: float,
    parts: Mapping[str, float],
    stack_s: float,
    kind: ErrorKind,
    batch: int,
) -> PredictedRange:
    total = sum(parts.values())
    if not total > 0:
        return range_of(median_s, 0.0)
    return _errors(setup, kind, batch).range_of(_terms(parts, stack_s), total).around(median_s)


def _terms(parts: Mapping[str, float], stack_s: float) -> Terms:
    return Terms(
        edge=parts["edge"] + parts["encode"],
        cloud=parts["queue"] + parts["cloud"],
        stack=min(stack_s, parts["up"] + parts["down"]),
    )


def _names(setup: Setup) -> list[str]:
    return sorted({name for group in setup.scenario.clients for name in group.devices})


def _errors(setup: Setup, kind: ErrorKind, batch: int) -> TermErrors:
    """Of the devices together: each term's largest error."""
    found = [
        term_errors(setup.devices[name], setup.server_device, _SAME_LINK, kind=kind, batch=batch)
        for name in _names(setup)
    ]
    widest = max(found, key=lambda item: item.edge)
    return replace(
        widest,
        stack=max(item.stack for item in found),
        common=max(item.common for item in found),
    )
