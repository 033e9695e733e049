"""How sure a simulation's medians are, by the errors of the profiles that it ran on.

A simulation draws the link and the requests, so what these vary by is in its quantiles. What it
takes as given are the seconds of computing, from profiles that are off by something. The mean parts
of a first token and of a step say what the medians depend on (`optimizer.cost.uncertainty`).
Waiting for a busy server grows faster than its steps: near saturation these ranges are too narrow.
Ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hwprofiles.profiles.errors import ErrorKind
from optimizer.artifacts.prediction import PredictedRange
from optimizer.cost.link import LinkPoint
from optimizer.cost.uncertainty import TermErrors, Terms, range_of, term_errors
from optimizer.simulate.measures import Measures
from optimizer.simulate.setup import Setup

_SAME_LINK = LinkPoint(up_bytes_per_s=1.0, down_bytes_per_s=1.0, rtt_s=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRanges:
    """p10, p50 and p90 of what will be measured as the median."""

    ttft_s: PredictedRange
    tbt_s: PredictedRange


def latency_ranges(setup: Setup, measures: Measures) -> LatencyRanges:
    """The ranges of both medians; of several devices the least known one counts."""
    batch = max(1, round(measures.mean_batch_sessions))
    stack_s = setup.cloud_message_s
    first, step = measures.breakdown_first_s, measures.breakdown_step_s
    return LatencyRanges(
        ttft_s=_range(setup, measures.ttft_s.p50, first, stack_s, "many_rows", batch),
        tbt_s=_range(setup, measures.tbt_s.p50, step, stack_s, "one_row", batch),
    )


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
    terms = Terms(
        edge=parts["edge"] + parts["encode"],
        cloud=parts["queue"] + parts["cloud"],
        stack=min(stack_s, parts["up"] + parts["down"]),
    )
    return _errors(setup, kind, batch).range_of(terms, total).around(median_s)


def _errors(setup: Setup, kind: ErrorKind, batch: int) -> TermErrors:
    """Of the devices together: each term's largest error."""
    names = sorted({name for group in setup.scenario.clients for name in group.devices})
    found = [
        term_errors(setup.devices[name], setup.server_device, _SAME_LINK, kind=kind, batch=batch)
        for name in names
    ]
    widest = max(found, key=lambda item: item.edge)
    return replace(
        widest,
        stack=max(item.stack for item in found),
        common=max(item.common for item in found),
    )
