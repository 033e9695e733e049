"""Links by name: shipped profiles, files, recorded traces, legs that follow each other, figures.

`wifi+internet` is a path over both (`hwprofiles.links.composed`). `rtt=40ms,up=10,down=50` is a
link of these figures (`hwprofiles.links.figures`), and may be a leg of a path.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Final

from hwprofiles.errors import ProfileError
from hwprofiles.links.composed import joined
from hwprofiles.links.figures import link_of_figures
from hwprofiles.links.profile import LinkProfile, Quantiles
from hwprofiles.links.schedule import LinkTrace, Steps, read_trace
from hwprofiles.schema.near_names import did_you_mean
from hwprofiles.schema.strict_yaml import load_strict

FILE_ENDINGS: Final = (".csv", ".yaml", ".yml")
MOST_LEGS: Final = 8


def link_names() -> tuple[str, ...]:
    """The names of the shipped profiles, in alphabetical order."""
    folder = files("hwprofiles") / "links"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_link(name_or_path: str | Path) -> LinkProfile:
    """A link by name, as a path of legs, by its figures, or from a file (see the module).

    A file is a profile (.yaml) or a recorded trace (.csv). A trace must have an uplink and pings to
    become a profile by itself (`profile_of_trace` takes them as arguments). Raises ProfileError.
    """
    text = str(name_or_path)
    if "+" not in text or (Path(text).suffix in FILE_ENDINGS and Path(text).is_file()):
        return _leg(text)
    legs = text.split("+")
    if len(legs) > MOST_LEGS:
        raise ProfileError(f"link '{text}': {len(legs)} legs, at most {MOST_LEGS}")
    return reduce(joined, map(_leg, legs))


def _leg(text: str) -> LinkProfile:
    path = Path(text)
    if path.suffix == ".csv":
        return profile_of_trace(path)
    if path.suffix not in FILE_ENDINGS:
        if "=" in text:
            return link_of_figures(text)
        if text not in link_names():
            raise ProfileError(
                f"no link profile '{text}': shipped are {', '.join(link_names())}; a file is named "
                "by a path that ends in .yaml or .csv, figures as rtt=40ms,up=10,down=50 (Mbit/s), "
                f"legs as wifi+internet{did_you_mean(text, link_names())}"
            )
        path = Path(str(files("hwprofiles"))) / "links" / f"{text}.yaml"
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
