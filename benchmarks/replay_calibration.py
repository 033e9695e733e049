"""What `simulated_against_measured.py` tells the simulator of this machine: seconds of the server's
batches, of the codec and of everything between, measured in runs of their own.

The edges ask over the emulator with a link that adds nothing: what the emulator itself, the
network stacks and both sides' threads take is then part of a message's seconds, as measured. They
wait for their front like a real device, because code that runs once in 20 ms finds colder caches
than code that runs all the time.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from replayed_fleet import Fleet, Run, emulated

from hwprofiles.link_shape import LinkShape
from optimizer.cost.codec import FRAME_HEADER_BYTES, TOKEN_BYTES, LevelCost
from optimizer.plan import Plan
from optimizer.simulate.scenario import Drafting, MeasuredSteps, Software, StepPoint

NO_LINK = LinkShape.fixed(rtt_s=1e-6, up_bytes_per_s=1e9, down_bytes_per_s=1e9)
CROWDS = (4, 12)
FEWEST_STEPS = 15  # a batch size with fewer says nothing
AT_ONCE = [0.0] * 10_000  # no thinking


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured, as the simulator takes it. `stages_s`: medians of one edge's step."""

    measured: MeasuredSteps
    software: Software
    level: LevelCost
    drafting: Drafting
    stages_s: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def calibrate(
    fleet: Fleet, plan: Plan, *, seconds: float, drafting: bool, seed: int
) -> Calibration:
    """One edge, then several together, each for `seconds` (a crowd for half of that)."""
    with emulated(NO_LINK, fleet.address) as way:
        alone = fleet.run([AT_ONCE], seconds, way=way)
        crowds = [fleet.run([AT_ONCE] * n, seconds / 2, way=way) for n in CROWDS]
        guessing = fleet.run([AT_ONCE], seconds, way=way, drafting=True) if drafting else None
    steps, chunks = decode_steps(alone.steps), prefill_chunks(alone.steps)
    stages_s = {key: median(steps, key) for key in STAGES}
    stages_s["between_s"] = statistics.median(between(alone, steps))
    hidden = plan.model.geometry.hidden_size
    encode, decode = (
        fixed_and_slope(steps, chunks, "encode_s"),
        fixed_and_slope(steps, chunks, "cloud_codec_s"),
    )
    wire_s = stages_s["wire_s"]
    return Calibration(
        measured=measured_steps(steps, chunks, [alone, *crowds]),
        software=Software(
            edge_message_s=wire_s / 2 + stages_s["between_s"],
            cloud_message_s=wire_s / 2 + stages_s["cloud_queue_s"],
            sample_s=stages_s["cloud_sample_s"],
            # Over loopback there is no TLS.
            connect_round_trips=2,
            connect_up_bytes=420,
            connect_down_bytes=190,
        ),
        level=LevelCost(
            name=plan.level,
            bits_per_element=bits(steps, hidden),
            prompt_bits_per_element=bits(
                [chunk for many in chunks.values() for chunk in many], hidden
            ),
            encode_fixed_s=encode[0],
            encode_s_per_element=encode[1] / hidden,
            decode_fixed_s=decode[0],
            decode_s_per_element=decode[1] / hidden,
        ),
        drafting=Drafting(length=0) if guessing is None else drafted(guessing),
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
    """The prompt's frames, by rows."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for step in steps:
        if step["phase"] == "prefill":
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


def bits(steps: Sequence[dict[str, Any]], hidden_size: int) -> float:
    """Bits an element that make the messages as long as they were, all together."""
    rows = sum(step["num_rows"] for step in steps)
    num_bytes = sum(step["uplink_bytes"] for step in steps)
    payload = num_bytes - FRAME_HEADER_BYTES * len(steps) - TOKEN_BYTES * rows
    return 8 * payload / (rows * hidden_size)


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


def drafted(run: Run) -> Drafting:
    """How often a step had guesses, how many, and how each fared until the first wrong one."""
    steps = [step for step in run.steps if step["phase"] == "decode"]
    guessed = [step for step in steps if step["num_drafts"]]
    accepted = sum(step["num_new_tokens"] - 1 for step in guessed)
    failed = sum(step["num_new_tokens"] <= step["num_drafts"] for step in guessed)
    length = statistics.fmean(step["num_drafts"] for step in guessed) if guessed else 0.0
    return Drafting(
        acceptance=accepted / max(accepted + failed, 1),
        proposal_share=len(guessed) / len(steps),
        length=max(1, round(length)),
        best_length=False,
    )
