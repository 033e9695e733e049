"""An hour of use as measurement records: what true profiles predict, with noise and outliers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.artifacts.specs import load_spec
from optimizer.cost.cloud import SessionRows, back_kv_bits, back_step_s, sample_s
from optimizer.cost.codec import decode_s, encode_s, level_on
from optimizer.cost.edge import front_step
from optimizer.cost.levels import DEFAULT_LEVELS
from optimizer.cost.link import LinkPoint
from optimizer.cost.memory import edge_memory
from optimizer.cost.quality import QualityModel
from optimizer.measured.predict import (
    CLOUD,
    TBT,
    TTFT,
    UPLINK,
    WIRE,
    PredictionBasis,
    predicted_figures,
)
from optimizer.measured.record import (
    DecodedFrames,
    EdgeSteps,
    MeasuredGeneration,
    MeasuredLink,
    MeasuredMachine,
    MeasuredServing,
    ServerSteps,
)

EDGE = load_device("local-epyc-2core")
CLOUD_MACHINE = load_device("local-epyc-2core-cloud")
LINK = LinkPoint(up_bytes_per_s=2.5e6, down_bytes_per_s=6e6, rtt_s=0.02)
SPEC = load_spec("smollm2-135m")
PLAN = Plan(
    model=ModelRef(id="smollm2", sha256="ab" * 32, geometry=SPEC.geometry),
    partition=Partition(split=10, front_bits=4, back_bits=8),
    back_start=10,
    kv_bits=32,
    level="q3",
    max_tokens=2048,
    prefill_chunk=128,
)
QUALITY = QualityModel(num_layers=SPEC.geometry.num_layers)
LEVEL = next(level for level in DEFAULT_LEVELS if level.name == "q3")
PROMPTS = (20, 45, 96, 128, 200, 333, 512, 700, 890)
ANSWERS = (20, 64, 150, 250)
DAY = "2026-11-30"
HIDDEN = SPEC.geometry.hidden_size


def machine_of(profile: DeviceProfile, **changes: Any) -> MeasuredMachine:
    """The profile's machine in a record's words."""
    platform = profile.platform
    machine = MeasuredMachine(
        processor=platform.processor,
        engine=platform.engine,
        num_threads=platform.num_threads,
        codec_kernel="compiled",
    )
    return replace(machine, **changes)


def basis(edge: DeviceProfile, cloud: DeviceProfile) -> PredictionBasis:
    return PredictionBasis(edge=edge, cloud=cloud, link=LINK, quality=QUALITY)


class Noise:
    """Seconds as a busy machine measures them: 5 % of noise, and one in 25 three times as long."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def of(self, seconds: float) -> float:
        wild = 3.0 if self._random.random() < 0.04 else 1.0
        return float(seconds * wild * self._random.lognormal(0.0, 0.05))

    def among(self, values: tuple[int, ...]) -> int:
        return int(self._random.choice(values))

    def between(self, low: int, high: int) -> int:
        return int(self._random.integers(low, high))


@cache
def front_s(plan: Plan, rows: int, position: int) -> float:
    step = front_step(
        EDGE,
        plan.model.geometry,
        split=plan.partition.split,
        weight_bits=plan.partition.front_bits,
        kv_bits=plan.kv_bits,
        num_rows=rows,
        position=position,
    )
    return float(step.total_s)


def generations(count: int, *, seed: int = 0, plan: Plan = PLAN) -> list[MeasuredGeneration]:
    """What `count` answers measured on true machines."""
    noise = Noise(seed)
    return [_generation(noise, plan) for _ in range(count)]


@cache
def _truth(blank: MeasuredGeneration) -> dict[str, float]:
    found = predicted_figures(blank, basis(EDGE, CLOUD_MACHINE))
    return {figure: item.p50 for figure, item in found.items()}


def _generation(noise: Noise, plan: Plan) -> MeasuredGeneration:
    prompt, tokens = noise.among(PROMPTS), noise.among(ANSWERS)
    level = level_on(LEVEL, edge=EDGE, cloud=CLOUD_MACHINE, hidden_size=HIDDEN)

    def steps(phase: Any, rows: int, position: int, number: int) -> EdgeSteps:
        return EdgeSteps(
            phase=phase,
            split=plan.partition.split,
            level=plan.level,
            num_rows=rows,
            num_steps=number,
            position=float(position),
            front_s=noise.of(front_s(plan, rows, position)),
            encode_s=noise.of(encode_s(level, hidden_size=HIDDEN, num_rows=rows)),
            wire_s=0.0,
            cloud_s=0.0,
            compute_s=0.0,
            uplink_bytes=0.0,
            batch_sessions=1.0,
        )

    chunks = [(min(128, prompt - start), start) for start in range(0, prompt, 128)]
    found = [steps("prefill", rows, start, 1) for rows, start in chunks]
    found += [
        steps("decode", 1, position, number)
        for position, number in by_history(prompt, prompt + tokens - 1)
    ]
    memory = edge_memory(EDGE, replace(plan, max_tokens=prompt + tokens)).total_bytes
    blank = MeasuredGeneration(
        date=DAY,
        program="run",
        machine=machine_of(EDGE),
        plan=plan,
        prompt_tokens=prompt,
        num_tokens=tokens,
        ttft_s=0.0,
        tbt_s=None,
        uplink_bytes=0,
        downlink_bytes=0,
        peak_memory_bytes=int(memory),
        steps=tuple(replace(step, front_s=0.0, encode_s=0.0) for step in found),
    )
    truth = _truth(blank)
    answers = tuple(
        replace(
            step,
            wire_s=noise.of(truth[WIRE]),
            cloud_s=noise.of(truth[CLOUD]),
            uplink_bytes=truth[UPLINK],
        )
        for step in found
    )
    return replace(
        blank,
        ttft_s=noise.of(truth[TTFT]),
        tbt_s=noise.of(truth[TBT]),
        steps=answers,
        link=MeasuredLink(rtt_s=noise.of(0.02), up_bytes_per_s=noise.of(2.5e6)),
    )


def by_history(first: int, stop: int) -> Iterator[tuple[int, int]]:
    """Middle and number of the positions [first, stop) of each class of histories."""
    while first < stop:
        last = min(stop, 1 << first.bit_length())
        yield (first + last) // 2, last - first
        first = last


def servings(count: int, *, seed: int = 1, cloud: DeviceProfile = CLOUD_MACHINE) -> list[Any]:
    """What a true server measured in `count` intervals."""
    noise = Noise(seed)
    level = level_on(LEVEL, edge=EDGE, cloud=cloud, hidden_size=HIDDEN)

    def steps(sessions: int, each: int, logits: int) -> ServerSteps:
        position = noise.among((30, 128, 400, 900, 1500))
        seconds = back_step_s(
            cloud,
            SPEC.geometry,
            num_layers=SPEC.geometry.num_layers - 10,
            back_bits=8,
            kv_bits=back_kv_bits(cloud, 8),
            sessions=[SessionRows(each, position)] * sessions,
            num_logits=logits,
        )
        return ServerSteps(
            split=10,
            num_sessions=sessions,
            num_rows=each * sessions,
            num_logits=logits,
            num_steps=noise.between(5, 400),
            position=float(position),
            compute_s=noise.of(seconds),
        )

    return [
        MeasuredServing(
            date=DAY,
            machine=machine_of(cloud),
            plan=PLAN,
            duration_s=60.0,
            steps=(
                steps(1, 1, 1),
                steps(1, 1, 1),
                steps(noise.between(2, 9), 1, 2),
                steps(1, 128, 0),
                steps(1, noise.among((8, 40, 100)), 1),
            ),
            frames=tuple(
                DecodedFrames(
                    level="q3",
                    num_rows=rows,
                    num_frames=40,
                    decode_s=noise.of(decode_s(level, hidden_size=HIDDEN, num_rows=rows)),
                )
                for rows in (1, 128)
            ),
            sample_s=noise.of(sample_s(cloud, SPEC.geometry, num_logits=1)),
            num_samples=300,
            peak_memory_bytes=1 << 30,
        )
        for _ in range(count)
    ]
