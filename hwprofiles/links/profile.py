"""Link profiles: what is known of a kind of link, every number with its source.

A profile serves planning (quantiles: "what if the link is as bad as one time in twenty?") and,
through `LinkProfile.shape`, the emulator and the simulator, which need a link that acts it out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import accumulate
from pathlib import Path

from hwprofiles.errors import ProfileError
from hwprofiles.links.schedule import LinkTrace, Steps, read_trace
from hwprofiles.links.shape import Curve, LinkShape, PipeShape, default_queue_bytes, uniform
from hwprofiles.schema.near_names import did_you_mean
from hwprofiles.schema.strict_yaml import load_strict

# How long a drawn rate holds in `LinkProfile.shape`: the bin of the recordings the quantiles of the
# cellular profiles come from.
RATE_HOLD_S = 1.0
HORIZON_S = 3600.0  # the drawn hour repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Three quantiles of one quantity, in the unit of the field that holds them.

    `measured` is True when `source` names a recording they were computed from, and False for a data
    sheet, a published figure completed by judgement, or an engineering assumption.
    """

    p05: float
    p50: float
    p95: float
    source: str
    measured: bool

    def __post_init__(self) -> None:
        if not 0 <= self.p05 <= self.p50 <= self.p95:
            raise ValueError("quantiles must satisfy 0 <= p05 <= p50 <= p95")
        if not self.source.strip():
            raise ValueError("quantiles need a source")

    def curve(self) -> Curve:
        """As a distribution: linear between the quantiles, flat beyond them."""
        return Curve(levels=(0.05, 0.5, 0.95), values=(self.p05, self.p50, self.p95))

    def at(self, level: float) -> float:
        """The quantile at `level` in [0, 1]."""
        return self.curve().at(level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """When nothing passes at all: the share of time, and how long one lasts on average."""

    share_of_time: float
    mean_duration_s: float
    source: str
    measured: bool

    def __post_init__(self) -> None:
        if not 0 < self.share_of_time < 1 or self.mean_duration_s <= 0 or not self.source.strip():
            raise ValueError("an outage needs 0 < share_of_time < 1, a duration and a source")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProfile:
    """One kind of link, seen from the edge device: `up` is towards the cloud.

    Rates are what one busy TCP connection gets, outages left out. `rtt_s` is the round trip of a
    small packet on the idle link; its spread is the jitter. `trace`, when given, is a CSV file
    (relative to the folder of the YAML file) that `shape` replays instead of drawing quantiles.
    """

    name: str
    description: str
    up_bytes_per_s: Quantiles
    down_bytes_per_s: Quantiles
    rtt_s: Quantiles
    outage: Outage | None = None
    trace: str | None = None

    def __post_init__(self) -> None:
        if self.up_bytes_per_s.p50 <= 0 or self.down_bytes_per_s.p50 <= 0:
            raise ValueError("the median rates must be positive")

    def jitter_s(self, level: float) -> float:
        """How much longer than on a good moment (p05) a round trip takes, as a quantile."""
        return max(0.0, self.rtt_s.at(level) - self.rtt_s.p05)

    def steady_shape(self, *, seed: int = 0) -> LinkShape:
        """The link at its median rates and round trip time: no jitter, no outage."""
        return LinkShape.fixed(
            rtt_s=self.rtt_s.p50,
            up_bytes_per_s=self.up_bytes_per_s.p50,
            down_bytes_per_s=self.down_bytes_per_s.p50,
            seed=seed,
        )

    def shape(self, *, seed: int = 0, up_bytes_per_s: float | None = None) -> LinkShape:
        """The link acted out: an hour drawn from the quantiles by `seed`, or the recorded trace.

        Ours: each second's rates are drawn independently; outages of exponential length come at
        exponential distances and stop both directions; all jitter is on the way up (where a
        cellular device waits for its grant), so that round trips have exactly the quantiles of
        `rtt_s`. Raises ProfileError when the trace cannot be read.
        """
        if self.trace is not None:
            trace = read_trace(self.trace)
            up = up_bytes_per_s
            if trace.up is None and up is None:
                up = self.up_bytes_per_s.p50
            rtt_s = self.rtt_s.p50 if trace.rtt_s is None else None
            return LinkShape.from_trace(trace, rtt_s=rtt_s, up_bytes_per_s=up, seed=seed)
        starts_s, working = _outages(self.outage, seed)
        delay_s = Steps.constant(self.rtt_s.p05 / 2)
        base = self.rtt_s
        jitter = Curve(
            levels=(0.05, 0.5, 0.95), values=(0.0, base.p50 - base.p05, base.p95 - base.p05)
        )

        def pipe(rate: Quantiles, stream: int, jitter_s: Curve | None) -> PipeShape:
            curve = rate.curve()
            values = tuple(
                curve.at(uniform(8 * seed + stream, k)) if on else 0.0
                for k, on in enumerate(working)
            )
            steps = Steps(starts_s=starts_s, values=values, period_s=HORIZON_S)
            return PipeShape(
                rate=steps,
                delay_s=delay_s,
                jitter_s=jitter_s,
                queue_bytes=default_queue_bytes(steps),
                seed=8 * seed + stream,
            )

        return LinkShape(
            up=pipe(self.up_bytes_per_s, 0, jitter if jitter.values[-1] > 0 else None),
            down=pipe(self.down_bytes_per_s, 1, None),
        )


def link_names() -> tuple[str, ...]:
    """The names of the shipped profiles, in alphabetical order."""
    folder = files("hwprofiles") / "links"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_link(name_or_path: str | Path) -> LinkProfile:
    """A shipped profile by name, or a profile (.yaml) or recorded trace (.csv) by path.

    A trace must have an uplink and pings to become a profile by itself (`profile_of_trace` takes
    them as arguments). Raises ProfileError.
    """
    path = Path(name_or_path)
    if path.suffix == ".csv":
        return profile_of_trace(path)
    if path.suffix not in (".yaml", ".yml"):
        if str(name_or_path) not in link_names():
            raise ProfileError(
                f"no link profile '{name_or_path}': shipped are {', '.join(link_names())}; "
                "a file is named by a path that ends in .yaml or .csv"
                f"{did_you_mean(str(name_or_path), link_names())}"
            )
        path = Path(str(files("hwprofiles"))) / "links" / f"{name_or_path}.yaml"
    profile = load_strict(path, LinkProfile)
    if profile.trace is None:
        return profile
    return replace(profile, trace=str(path.parent / profile.trace))


def profile_of_trace(
    path: str | Path, *, up_bytes_per_s: float | None = None, rtt_s: float | None = None
) -> LinkProfile:
    """The profile of a recorded trace: its time-weighted quantiles, and the trace to replay.

    `up_bytes_per_s` and `rtt_s` stand in where the trace recorded none. Raises ProfileError.
    """
    path = Path(path)
    trace: LinkTrace = read_trace(path)
    up = trace.up if up_bytes_per_s is None else Steps.constant(up_bytes_per_s)
    rtt = trace.rtt_s if rtt_s is None else Steps.constant(rtt_s)
    if up is None or rtt is None:
        lacking = "up_mbps" if up is None else "ping_ms"
        raise ProfileError(f"{path}: has no column {lacking}, and no value was given for it")
    computed = f"time-weighted quantiles of the trace {path.name}"
    return LinkProfile(
        name=path.stem,
        description=f"The recorded trace {path.name}",
        up_bytes_per_s=_quantiles(up, computed if up is trace.up else "given"),
        down_bytes_per_s=_quantiles(trace.down, computed),
        rtt_s=_quantiles(rtt, computed if rtt is trace.rtt_s else "given"),
        trace=str(path),
    )


def _quantiles(steps: Steps, source: str) -> Quantiles:
    if steps.period_s == math.inf:
        value = steps.values[-1]
        return Quantiles(p05=value, p50=value, p95=value, source=source, measured=False)
    ends = (*steps.starts_s[1:], steps.period_s)
    spans = sorted((v, b - a) for v, a, b in zip(steps.values, steps.starts_s, ends, strict=True))
    reached = list(accumulate(span for _, span in spans))

    def at(level: float) -> float:
        due = level * reached[-1]
        return next(v for (v, _), r in zip(spans, reached, strict=True) if r >= due)

    return Quantiles(p05=at(0.05), p50=at(0.5), p95=at(0.95), source=source, measured=True)


def _outages(outage: Outage | None, seed: int) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """Step starts over the drawn hour, and whether the link works in each step."""
    starts = {k * RATE_HOLD_S for k in range(int(HORIZON_S / RATE_HOLD_S))}
    breaks: list[tuple[float, float]] = []
    if outage is not None:
        mean_gap_s = outage.mean_duration_s * (1 / outage.share_of_time - 1)
        t_s, k = 0.0, 0
        while True:
            begin_s = t_s - mean_gap_s * math.log(1 - uniform(8 * seed + 2, k))
            t_s = begin_s - outage.mean_duration_s * math.log(1 - uniform(8 * seed + 3, k))
            if t_s >= HORIZON_S:
                break
            breaks.append((begin_s, t_s))
            k += 1
    starts.update(edge for pair in breaks for edge in pair)
    ordered = tuple(sorted(starts))
    working, i = [], 0
    for start in ordered:
        while i < len(breaks) and breaks[i][1] <= start:
            i += 1
        working.append(i == len(breaks) or start < breaks[i][0])
    return ordered, tuple(working)
