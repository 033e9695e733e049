"""Where a front is cut, so that its split can move (`optimizer.artifacts.plan.Plan.front_splits`).

Segments of equal size: the cache for T tokens at the last of n segments holds T n / k at the k-th.
A smaller first segment would hold more tokens; a larger one leaves the server less. Source: ours.
"""

from __future__ import annotations

from dataclasses import replace

from optimizer.artifacts.plan import Plan
from optimizer.errors import PlanError


def in_segments(plan: Plan, count: int) -> Plan:
    """The plan with its front in `count` segments, as equal as layers can be.

    Raises PlanError where the front has fewer layers, and where the device holds every layer.
    """
    if count == 1:
        return plan
    split = plan.partition.split
    if plan.edge_is_whole:
        raise PlanError("this plan puts every layer on the device: there is no split to move")
    if count > split:
        raise PlanError(f"{count} segments of a front of {split} layers: at most one a layer")
    cuts = tuple(split * (index + 1) // count for index in range(count))
    return replace(plan, front_splits=cuts)
