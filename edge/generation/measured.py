"""A finished generation as a line of a measurement log: figures alone, no text and no token ids."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import date
from statistics import fmean, median

from edge.generation.report import Completion
from edge.step_trace import LOCAL_LEVEL, StepTrace
from hwprofiles.peak_memory import peak_memory_bytes
from hwprofiles.sensors.energy import MeasuredEnergy
from optimizer.artifacts.plan import Plan
from optimizer.measured.record import (
    MOST_GROUPS,
    EdgeSteps,
    MeasuredGeneration,
    MeasuredJoules,
    MeasuredLink,
    MeasuredMachine,
    Program,
    bare_plan,
    history_class,
)
from optimizer.policy.link_estimate import LinkEstimate, observe


def measured_generation(
    completion: Completion,
    plan: Plan,
    *,
    machine: MeasuredMachine,
    program: Program,
    today: date,
) -> MeasuredGeneration | None:
    """The record of `completion`; None where it says nothing about the plan.

    That is so without a token, after a reconnect, a moved split or a cut context, and where another
    than the plan's side answered.
    """
    steps = completion.steps
    disturbed = completion.reconnects or completion.moves or completion.shifts
    lost = completion.finish_reason == "server_lost"
    if not completion.token_ids or not steps or disturbed or lost or _elsewhere(steps, plan):
        return None
    tbt_s, times = completion.tbt_quantile_s(0.5), completion.token_times_s
    return MeasuredGeneration(
        date=today.isoformat(),
        program=program,
        machine=machine,
        plan=bare_plan(plan),
        prompt_tokens=completion.num_prompt_tokens,
        num_tokens=len(completion.token_ids),
        ttft_s=completion.ttft_s,
        tbt_s=tbt_s if tbt_s > 0 else None,
        uplink_bytes=sum(step.uplink_bytes for step in steps),
        downlink_bytes=sum(step.downlink_bytes for step in steps),
        peak_memory_bytes=peak_memory_bytes(),
        steps=grouped_steps(steps, plan.partition.split),
        link=_link(steps),
        energy=_energy(completion.energy, steps),
        further_s=times[-1] - times[0] if len(times) > 1 else None,
    )


def _energy(energy: MeasuredEnergy | None, steps: Sequence[StepTrace]) -> MeasuredJoules | None:
    """What was measured, and how long the device computed meanwhile."""
    if energy is None:
        return None
    return MeasuredJoules(
        joules=energy.joules,
        seconds=energy.seconds,
        busy_s=min(sum(step.edge_s for step in steps), energy.seconds),
        sensor=energy.full_name,
    )


def _elsewhere(steps: Sequence[StepTrace], plan: Plan) -> bool:
    """Whether the layers ran elsewhere than planned: a fallback's model, or another split."""
    return any(
        (step.level == LOCAL_LEVEL) is not plan.edge_is_whole
        or step.split not in (-1, plan.partition.split)
        for step in steps
    )


def grouped_steps(steps: Sequence[StepTrace], split: int) -> tuple[EdgeSteps, ...]:
    """Alike frames together, in the order in which their kinds came first. Wrong guesses that were
    sent ahead brought nothing and are left out."""
    groups: dict[tuple[str, int, str, int], list[StepTrace]] = {}
    for step in steps:
        if step.phase == "decode" and not step.num_new_tokens:
            continue
        key = (step.phase, step.num_rows, step.level, history_class(step.first_position))
        groups.setdefault(key, []).append(step)
    kinds = itertools.islice(groups.values(), MOST_GROUPS)
    return tuple(_edge_steps(group, split) for group in kinds)


def _edge_steps(group: Sequence[StepTrace], split: int) -> EdgeSteps:
    first = group[0]
    return EdgeSteps(
        phase="prefill" if first.phase == "prefill" else "decode",
        split=split,
        level=first.level,
        num_rows=first.num_rows,
        num_steps=len(group),
        position=fmean(step.first_position for step in group),
        front_s=median(step.front_s for step in group),
        encode_s=median(step.encode_s for step in group),
        wire_s=median(step.wire_s for step in group),
        cloud_s=median(step.cloud_s for step in group),
        compute_s=median(step.cloud_compute_s for step in group),
        uplink_bytes=fmean(step.uplink_bytes for step in group),
        batch_sessions=fmean(step.batch_sessions for step in group),
        server_s=median(_server_s(step) for step in group),
    )


def _server_s(step: StepTrace) -> float:
    """Seconds that the frame kept the server busy; the batch's layers are shared."""
    shared_s = step.cloud_compute_s / max(step.batch_sessions, 1)
    return step.cloud_codec_s + shared_s + step.cloud_sample_s


def _link(steps: Sequence[StepTrace]) -> MeasuredLink | None:
    """From frames that had the link to themselves: those of the answer, and a prompt's only one."""
    prompt = [step for step in steps if step.phase == "prefill"]
    alone = prompt if len(prompt) == 1 else []
    alone = alone + [step for step in steps if step.phase == "decode" and not step.ahead]
    estimate = LinkEstimate()
    for step in alone:
        if step.uplink_bytes and step.wire_s:
            estimate = observe(estimate, step.uplink_bytes, step.wire_s)
    if not estimate.crossings:
        return None
    rate = 1 / estimate.seconds_per_byte if estimate.seconds_per_byte > 0 else None
    return MeasuredLink(rtt_s=max(estimate.rtt_s, 0.0), up_bytes_per_s=rate)
