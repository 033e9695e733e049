"""Measured steps of a log beside what a profile predicts for them, precision by precision.

Samples are gathered once. `predicted` then asks a profile for all of them, as often as the profile
changes: alike samples together, because the cost model takes many positions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from codec.levels.registry import kind_of
from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.scaled import PrecisionsUsed
from optimizer.artifacts.plan import Plan
from optimizer.cost.attention import attended_s
from optimizer.cost.cloud import (
    BackCost,
    SessionGroup,
    back_compute_bits,
    back_kv_bits,
    lone_step_s,
    sample_s,
)
from optimizer.cost.codec import LevelCost, decode_s, encode_s, level_on
from optimizer.cost.edge import answer_step_s, front_steps
from optimizer.cost.front_kernels import front_kernel, halves_on
from optimizer.cost.streaming import reading_s
from optimizer.measured.record import MeasuredGeneration, MeasuredServing
from optimizer.measured.robust import Values


class StepKey(NamedTuple):
    """What steps have in common that one call of the cost model predicts."""

    plan: Plan
    split: int
    num_rows: int
    num_sessions: int
    num_logits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSamples:
    """Steps of one key: where they were, and what they took. [N] each."""

    key: StepKey
    positions: Values
    seconds: Values


class SplitPrediction(NamedTuple):
    """Predicted seconds, [N] each: attention over the cache, and all else."""

    work_s: Values
    attention_s: Values

    @property
    def total_s(self) -> Values:
        """Both."""
        return self.work_s + self.attention_s


class CodecSamples(NamedTuple):
    """Frames of one kind of coder: seconds measured, and rows of each. [N] each."""

    kind: str
    plan: Plan
    level: str
    num_rows: tuple[int, ...]
    seconds: Values


def front_samples(
    generations: Sequence[MeasuredGeneration], *, prompts: bool
) -> dict[StepKey, StepSamples]:
    """Steps of fronts: of one row in answers, or of several in prompts."""
    found: dict[StepKey, list[tuple[float, float]]] = {}
    for item in generations:
        for step in item.steps:
            is_prompt = step.phase == "prefill" and step.num_rows > 1
            is_answer = step.phase == "decode" and step.num_rows == 1
            is_of_front = step.split and step.front_s and is_sent_as_rows(step.level)
            if is_of_front and (is_prompt if prompts else is_answer):
                key = StepKey(item.plan, step.split, step.num_rows, 1, 1)
                found.setdefault(key, []).append((step.position, step.front_s))
    return _stacked(found)


def back_samples(servings: Sequence[MeasuredServing], *, many: bool) -> dict[StepKey, StepSamples]:
    """Steps of backs: of one row, or of several of one or many sessions."""
    found: dict[StepKey, list[tuple[float, float]]] = {}
    for item in servings:
        for step in item.steps:
            if step.compute_s and (step.num_rows > 1) is many:
                key = StepKey(
                    item.plan, step.split, step.num_rows, step.num_sessions, step.num_logits
                )
                found.setdefault(key, []).append((step.position, step.compute_s))
    return _stacked(found)


def is_sent_as_rows(level: str) -> bool:
    """Whether the device computed a frame's rows as a plan counts: not where ids or keys and
    values went, whose rows are computed beside."""
    return level != "ids" and not level.startswith("kv:")


def encoder_samples(generations: Sequence[MeasuredGeneration]) -> list[CodecSamples]:
    """Frames that devices encoded."""
    found: dict[tuple[Plan, str], list[tuple[int, float]]] = {}
    for item in generations:
        for step in item.steps:
            if step.encode_s and is_sent_as_rows(step.level) and step.level != "none":
                pair = (step.num_rows, step.encode_s)
                found.setdefault((item.plan, step.level), []).append(pair)
    return _coded(found)


def decoder_samples(servings: Sequence[MeasuredServing]) -> list[CodecSamples]:
    """Frames that servers decoded."""
    found: dict[tuple[Plan, str], list[tuple[int, float]]] = {}
    for item in servings:
        for frame in item.frames:
            if frame.decode_s and is_sent_as_rows(frame.level) and frame.level != "none":
                pair = (frame.num_rows, frame.decode_s)
                found.setdefault((item.plan, frame.level), []).append(pair)
    return _coded(found)


def front_precisions(device: DeviceProfile, key: StepKey) -> PrecisionsUsed:
    """The kernels of `device` that a front's steps run on. ProfileError where one is missing."""
    bits = {*layer_bits(key), key.plan.partition.front_bits}
    exact = key.plan.exact_front
    is_wide = exact or key.plan.streamed_layers > 0
    halves = halves_on(device, key.plan.model.geometry, exact=is_wide)
    kernels = [front_kernel(value, halves=halves).on(device, exact=exact) for value in bits]
    return PrecisionsUsed(
        kernels=frozenset((kernel.weight_bits, kernel.compute) for kernel in kernels),
        kv_bits=key.plan.kv_bits,
    )


def back_precisions(device: DeviceProfile, key: StepKey) -> PrecisionsUsed:
    """The same of a back."""
    bits = key.plan.partition.back_bits
    kernel = device.kernel(back_compute_bits(device, bits))
    return PrecisionsUsed(
        kernels=frozenset({(kernel.weight_bits, kernel.compute)}),
        kv_bits=back_kv_bits(device, bits),
    )


def layer_bits(key: StepKey) -> tuple[int, ...]:
    """Weight bits of the layers that the device ran."""
    return key.plan.layer_bits[: key.split]


def predict_front(device: DeviceProfile, samples: StepSamples) -> SplitPrediction:
    """What `device` predicts for a front's steps; those of answers at the speed that lasts."""
    key = samples.key
    plan = key.plan
    step = front_steps(
        device,
        plan.model.geometry,
        layer_bits=[layer_bits(key)],
        weight_bits=plan.partition.front_bits,
        kv_bits=plan.kv_bits,
        num_rows=key.num_rows,
        positions=[round(position) for position in samples.positions],
        exact=plan.exact_front,
        reading_s=[reading_s(device, plan)],
    )
    waits = not plan.edge_is_whole
    attention = np.broadcast_to(step.attention_s, (1, len(samples.positions)))[0]
    total = np.broadcast_to(step.total_s, (1, len(samples.positions)))[0]
    if key.num_rows > 1:
        return SplitPrediction(total - attention, attention)
    lasting = np.asarray(answer_step_s(device, total, waits=waits))
    slow = answer_step_s(device, 1.0, waits=waits) - (device.pause_s if waits else 0.0)
    return SplitPrediction(lasting - slow * attention, slow * attention)


def predict_back(device: DeviceProfile, samples: StepSamples) -> SplitPrediction:
    """What `device` predicts for a back's steps."""
    key = samples.key
    partition, geometry = key.plan.partition, key.plan.model.geometry
    back = BackCost(
        device,
        geometry,
        num_layers=geometry.num_layers - key.split,
        back_bits=partition.back_bits,
        kv_bits=back_kv_bits(device, partition.back_bits),
    )
    each = key.num_rows // key.num_sessions
    group = SessionGroup(each, samples.positions, key.num_sessions)
    work = float(back.step_without_attention_s([group], key.num_logits))
    attention = key.num_sessions * attended_s(back.attention(each), samples.positions + each)
    slow = 1.0
    if key.num_rows == 1:
        work = float(lone_step_s(device, work, key.num_sessions))
        slow = device.pause_slowdown
    return SplitPrediction(np.full(len(samples.positions), work), slow * np.asarray(attention))


class CoderPrediction(NamedTuple):
    """Predicted seconds of frames, [N] each: what a frame takes whatever it holds, and its
    elements. All 0 where the profile has not timed the coder."""

    frame_s: Values
    elements_s: Values


def predict_coder(
    device: DeviceProfile, samples: CodecSamples, *, encodes: bool
) -> CoderPrediction:
    """What `device` predicts for these frames."""
    hidden = samples.plan.model.geometry.hidden_size
    silent = LevelCost(name=samples.level, bits_per_element=0.0)
    level = level_on(silent, edge=device, cloud=device, hidden_size=hidden)
    seconds = encode_s if encodes else decode_s
    fixed = seconds(level, hidden_size=hidden, num_rows=0)
    total = np.array([seconds(level, hidden_size=hidden, num_rows=n) for n in samples.num_rows])
    return CoderPrediction(np.full(len(total), fixed), total - fixed)


def predict_sampling(device: DeviceProfile, servings: Sequence[MeasuredServing]) -> Values:
    """Seconds of drawing a token in each interval, [N]."""
    return np.array([sample_s(device, s.plan.model.geometry, num_logits=1) for s in servings])


def _stacked(
    found: dict[StepKey, list[tuple[float, float]]],
) -> dict[StepKey, StepSamples]:
    return {
        key: StepSamples(
            key=key,
            positions=np.array([position for position, _ in pairs]),
            seconds=np.array([seconds for _, seconds in pairs]),
        )
        for key, pairs in found.items()
    }


def _coded(found: dict[tuple[Plan, str], list[tuple[int, float]]]) -> list[CodecSamples]:
    return [
        CodecSamples(
            kind_of(level).name,
            plan,
            level,
            tuple(rows for rows, _ in pairs),
            np.array([seconds for _, seconds in pairs]),
        )
        for (plan, level), pairs in found.items()
    ]
