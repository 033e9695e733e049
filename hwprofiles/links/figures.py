"""A link from a few figures in the command line: `rtt=40ms,up=10,down=50`."""

from __future__ import annotations

import math
from typing import Final

from hwprofiles.errors import ProfileError
from hwprofiles.links.profile import LinkProfile, Quantiles
from hwprofiles.links.schedule import BYTES_PER_S_PER_MBPS

FIGURES: Final = ("rtt", "up", "down", "jitter")
REQUIRED: Final = ("rtt", "up", "down")
_TIMES: Final = {"ms": 1e-3, "s": 1.0}
_RATES: Final = {"kbit": 1e-3, "Mbit": 1.0, "Gbit": 1e3, "": 1.0}  # in Mbit/s
_MOST_MBPS: Final = 1e6
_MOST_S: Final = 60.0


def link_of_figures(text: str) -> LinkProfile:
    """The link of `rtt=40ms,up=10,down=50`: it does not vary.

    rtt: with `ms` or `s`. up, down: in Mbit/s, or with `kbit`, `Mbit` or `Gbit`. jitter: up to so
    much longer than `rtt`, with `ms` or `s`. Raises ProfileError, which names the figure.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or name not in FIGURES:
            raise ProfileError(f"link '{text}': '{part}' is none of {', '.join(FIGURES)}")
        if name in found:
            raise ProfileError(f"link '{text}': {name} is there twice")
        found[name] = _rate(text, name, value) if name in ("up", "down") else _time(text, value)
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        raise ProfileError(f"link '{text}': lacks {' and '.join(missing)}")
    rtt_s, jitter_s = found["rtt"], found.get("jitter", 0.0)
    return LinkProfile(
        name=text.replace(" ", ""),
        description="A link of the figures that were given.",
        up_bytes_per_s=_given(found["up"]),
        down_bytes_per_s=_given(found["down"]),
        rtt_s=_given(rtt_s, rtt_s + jitter_s / 2, rtt_s + jitter_s),
    )


def _given(*values: float) -> Quantiles:
    p05, p50, p95 = values if len(values) > 1 else values * 3
    return Quantiles(p05=p05, p50=p50, p95=p95, source="given", measured=False)


def _time(link: str, value: str) -> float:
    """Seconds."""
    for unit, scale in _TIMES.items():
        number = _number(value.removesuffix(unit)) if value.endswith(unit) else None
        if number is not None and 0 <= number * scale <= _MOST_S:
            return number * scale
    raise ProfileError(f"link '{link}': '{value}' is no time: write 40ms or 0.04s, at most 60s")


def _rate(link: str, name: str, value: str) -> float:
    """Bytes a second."""
    for unit, scale in _RATES.items():
        number = _number(value.removesuffix(unit)) if value.endswith(unit) else None
        if number is not None and 0 < number * scale <= _MOST_MBPS:
            return number * scale * BYTES_PER_S_PER_MBPS
    raise ProfileError(
        f"link '{link}': {name}={value} is no rate: write a number of Mbit/s, or 500kbit, 10Mbit, "
        "1Gbit"
    )


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
