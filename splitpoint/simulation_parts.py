"""The real scheduler, admission, controller and draft length in the shapes the simulator takes.

Module-level functions, not lambdas: replications run in other processes and take these along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from optimizer.policy.admission import AdmissionRule
from optimizer.policy.batching import Scheduler, Waiting
from optimizer.policy.draft_length import RoundTimes, best_length
from optimizer.policy.level_control import Controller, Rung
from optimizer.policy.prefill_chunks import next_chunk
from optimizer.simulate.ports import Parts, RoundParts
from optimizer.simulate.scenario import BatchLimits, Servers


def scheduler_of(limits: BatchLimits) -> Scheduler:
    """The server's scheduler with a scenario's limits."""
    return Scheduler(**asdict(limits))


def admission_of(servers: Servers) -> AdmissionRule:
    """The server's admission rule with a scenario's limits."""
    return AdmissionRule(max_sessions=servers.max_sessions, max_waiting=servers.waiting)


def controller_of(
    *, deadline_s: float, ladder: Sequence[tuple[str, float]], start: int
) -> Controller:
    """The edge's controller over a ladder of names and bytes a row."""
    rungs = [Rung(name=name, bytes_per_row=num_bytes) for name, num_bytes in ladder]
    return Controller(deadline_s=deadline_s, rungs=rungs, start=start)


def draft_length(acceptance: Sequence[float], parts: RoundParts) -> int:
    """The edge's best number of drafts for these chances and times."""
    return best_length(acceptance, RoundTimes(**asdict(parts))).num_drafts


REAL_PARTS = Parts(
    scheduler=scheduler_of,
    waiting=Waiting,
    admission=admission_of,
    controller=controller_of,
    draft_length=draft_length,
    next_chunk=next_chunk,
)
