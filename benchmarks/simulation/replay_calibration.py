"""What `simulated_against_measured.py` tells the simulator of this machine: seconds of the server's
batches, of the codec and of everything between, measured in runs of their own.

The edges ask over the emulator with a link of 20 ms and no want of rate: what its round trip takes
beyond that (the emulator's own wakings, the network stacks, both sides' threads) is a message's
seconds. They wait for their front like a real device, too, because code that runs once in 20 ms
finds colder caches than code that runs all the time.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.simulation.replayed_fleet import Fleet, Run, emulated
from hwprofiles.links.shape import LinkShape
from optimizer.artifacts.plan import Plan
from optimizer.cost.codec import LevelCost
from optimizer.simulate.scenario import (
    DraftOutcome,
    FlightFrame,
    MeasuredFlight,
    MeasuredSteps,
    Software,
    StepPoint,
)

RTT_S = 0.02  # none of those that are compared
LINK = LinkShape.fixed(rtt_s=RTT_S, up_bytes_per_s=1e9, down_bytes_per_s=1e9)
CROWDS = (4, 12)
FEWEST_STEPS = 15  # a batch size with fewer says nothing
AT_ONCE = [0.0] * 10_000  # no thinking


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured, as the simulator takes it. `stages_s`: medians of one edge's step."""

    measured: MeasuredSteps
    software: Software
    levels: tuple[LevelCost, ...]
    stages_s: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def calibrate(fleet: Fleet, plan: Plan, *, seconds: float) -> Calibration:
    """One edge, then several together, each for `seconds` (a crowd for half of that)."""
    with emulated(LINK, fleet.address) as way:
        alone = fleet.run([AT_ONCE], seconds, way=way)
        crowds = [fleet.run([AT_ONCE] * n, seconds / 2, way=way) for n in CROWDS]
    steps = decode_steps(alone.steps)
    chunks = prefill_chunks(step for run in (alone, *crowds) for step in run.steps)
    stages_s = {key: median(steps, key) for key in STAGES}
    stages_s["between_s"] = statistics.median(between(alone, steps))
    hidden = plan.model.geometry.hidden_size
    encode, decode = (
        fixed_and_slope(steps, chunks, "encode_s"),
        fixed_and_slope(steps, chunks, "cloud_codec_s"),
    )
    message_s = max(stages_s["wire_s"] - RTT_S, 0.0)
    return Calibration(
        measured=measured_steps(steps, chunks, [alone, *crowds]),
        software=Software(
            edge_message_s=message_s / 2 + stages_s["between_s"],
            cloud_message_s=message_s / 2 + stages_s["cloud_queue_s"],
            sample_s=stages_s["cloud_sample_s"],
            # Over loopback there is no TLS.
            connect_round_trips=2,
            connect_up_bytes=420,
            connect_down_bytes=190,
        ),
        levels=tuple(
            LevelCost(
                name=name,
                bits_per_element=answer,
                prompt_bits_per_element=prompt,
                encode_fixed_s=encode[0],
                encode_s_per_element=encode[1] / hidden,
                decode_fixed_s=decode[0],
                decode_s_per_element=decode[1] / hidden,
            )
            for name, (prompt, answer) in fleet.bits_per_element.items()
        ),
        stages_s=stages_s,
    )


STAGES = (
    "front_s",
    "encode_s",
    "wire_s",
    "cloud_codec_s",
    "cloud_queue_s",
    "cloud_compute_s",
    "cloud_sample_s",
)


def decode_steps(steps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Plain decode steps: one row, one token."""
    return [step for step in steps if step["phase"] == "decode" and step["num_rows"] == 1]


def prefill_chunks(steps: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """The prompt's frames that shared their batch with nobody, by rows."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for step in steps:
        if step["phase"] == "prefill" and step["batch_sessions"] == 1:
            found[step["num_rows"]].append(step)
    return dict(found)


def median(steps: Iterable[dict[str, Any]], key: str) -> float:
    return statistics.median(step[key] for step in steps)


def between(run: Run, steps: Sequence[dict[str, Any]]) -> list[float]:
    """What each gap between tokens holds besides its step's stages: the edge's own loop."""
    gaps = [gap for asked in run.asked for gap in np.diff(asked["token_s"])]
    return [
        float(gap) - sum(step[key] for key in STAGES) for gap, step in zip(gaps, steps, strict=True)
    ]


def fixed_and_slope(
    steps: Sequence[dict[str, Any]], chunks: dict[int, list[dict[str, Any]]], key: str
) -> tuple[float, float]:
    """Seconds of a frame, and of each of its rows, from one row and from the longest chunk."""
    longest = max(chunks)
    low, high = median(steps, key), median(chunks[longest], key)
    slope = max((high - low) / (longest - 1), 0.0)
    return low - slope, slope


def measured_steps(
    steps: Sequence[dict[str, Any]],
    chunks: dict[int, list[dict[str, Any]]],
    runs: Sequence[Run],
) -> MeasuredSteps:
    """The server's batches: medians by size, what a cached token adds, and how single ones lie."""
    by_batch: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for step in decode_steps(run.steps):
            by_batch[step["batch_sessions"]].append(step["cloud_compute_s"])
    many = {n: found for n, found in sorted(by_batch.items()) if len(found) >= FEWEST_STEPS}
    factors = [seconds / statistics.median(found) for found in many.values() for seconds in found]
    positions = np.array([step["first_position"] for step in steps], dtype=float)
    computed = np.array([step["cloud_compute_s"] for step in steps])
    late = positions >= np.median(positions)
    apart = positions[late].mean() - positions[~late].mean()
    slope = (np.median(computed[late]) - np.median(computed[~late])) / apart
    points = [
        StepPoint(rows=n, sessions=n, seconds=statistics.median(found)) for n, found in many.items()
    ]
    points += [
        StepPoint(rows=n, sessions=1, seconds=median(found, "cloud_compute_s"))
        for n, found in chunks.items()
    ]
    return MeasuredSteps(
        points=tuple(points),
        context_tokens=int(np.median(positions)),
        attention_s_per_token=max(float(slope), 0.0),
        spread=tuple(float(q) for q in np.quantile(factors, np.linspace(0, 0.995, 41))),
    )


def drafted(run: Run) -> tuple[DraftOutcome, ...]:
    """Every step's guesses, and how many of them were right."""
    return tuple(
        DraftOutcome(drafts=step["num_drafts"], accepted=step["num_new_tokens"] - 1)
        for step in run.steps
        if step["phase"] == "decode"
    )


def flown(run: Run) -> tuple[MeasuredFlight, ...]:
    """Every step with the frames that were sent ahead of its answer, each with what it brought.

    Frames are in the order of sending; those of one answer whose number is not there were never
    answered, since the answer had ended.
    """
    found: list[list[FlightFrame]] = []
    for edge in run.edges:
        for answer in answers(edge["steps"]):
            flight: list[FlightFrame] | None = None
            for step in sorted(answer, key=lambda step: step["sequence"]):
                if step["phase"] != "decode":
                    continue
                frame = FlightFrame(rows=step["num_rows"], tokens=step["num_new_tokens"])
                if not step["ahead"]:
                    flight = [frame] if frame.tokens else None
                    found += [] if flight is None else [flight]
                elif flight is not None:
                    flight.append(frame)
    return tuple(MeasuredFlight(frames=tuple(frames)) for frames in found)


def answers(steps: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The steps of one edge, answer by answer: each begins with the prompt's first frame."""
    found: list[list[dict[str, Any]]] = []
    for step in steps:
        if step["sequence"] == 0 or not found:
            found.append([])
        found[-1].append(step)
    return found
