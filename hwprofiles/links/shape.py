"""What a link does to packets, as frozen values: rate, delay, jitter and queue each way."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from hwprofiles.links.schedule import LinkTrace, Steps

# How long one jitter value holds. Ours: of the order of an LTE retransmission round (8 ms) or a
# scheduling delay, short against a decoding step, so that successive steps see independent delays
# while the packets of one message share theirs.
JITTER_HOLD_S = 0.02

# An unset queue holds this much time at the mean rate, as an ordinary access router does...
DEFAULT_QUEUE_S = 0.1
# ...but never less than this many bytes (about 20 Ethernet packets).
MIN_QUEUE_BYTES = 32_768

MIN_PACKET_BYTES = 1_448  # the payload of an Ethernet packet with TCP timestamps
MAX_PACKET_BYTES = 65_536
PACKET_S = 1e-3  # above the minimum, a packet takes this long to send: smooth, yet cheap in CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A distribution given by quantiles, linear between them and flat outside them."""

    levels: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.levels or len(self.levels) != len(self.values):
            raise ValueError("a curve needs as many levels as values")
        if list(self.levels) != sorted(set(self.levels)) or list(self.values) != sorted(
            self.values
        ):
            raise ValueError("quantile levels must rise and values must not fall")

    def at(self, level: float) -> float:
        """The quantile at `level` in [0, 1]."""
        k = bisect_right(self.levels, level)
        if k == 0:
            return self.values[0]
        if k == len(self.levels):
            return self.values[-1]
        a, b = self.levels[k - 1], self.levels[k]
        return self.values[k - 1] + (self.values[k] - self.values[k - 1]) * (level - a) / (b - a)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipeShape:
    """One direction: `rate` in bytes/s, one-way `delay_s`, further delay drawn from `jitter_s`.

    The jitter is a function of time and `seed` alone (see `extra_delay_s`), so the same link gives
    the same delays to the emulator and to the simulator, whatever the traffic.
    """

    rate: Steps
    delay_s: Steps
    jitter_s: Curve | None = None
    queue_bytes: int = MIN_QUEUE_BYTES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.queue_bytes < MIN_PACKET_BYTES:
            raise ValueError(f"queue_bytes must be at least one packet ({MIN_PACKET_BYTES})")
        if self.jitter_s is not None and self.jitter_s.values[0] < 0:
            raise ValueError("jitter must not be negative")

    def extra_delay_s(self, t_s: float) -> float:
        """The jitter that holds at t_s."""
        if self.jitter_s is None:
            return 0.0
        return self.jitter_s.at(uniform(self.seed, int(t_s / JITTER_HOLD_S)))

    def packet_bytes(self, t_s: float) -> int:
        """How large the packets should be that enter at t_s."""
        return int(min(max(self.rate.value(t_s) * PACKET_S, MIN_PACKET_BYTES), MAX_PACKET_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkShape:
    """Both directions: `up` from the client to the target, `down` back."""

    up: PipeShape
    down: PipeShape

    @classmethod
    def fixed(
        cls,
        *,
        rtt_s: float,
        up_bytes_per_s: float,
        down_bytes_per_s: float,
        jitter_s: float = 0.0,
        queue_bytes: int | None = None,
        seed: int = 0,
    ) -> LinkShape:
        """Constant rates; half of `rtt_s` each way; each way a further 0 to `jitter_s`, uniform.

        Raises ValueError on a negative or infinite number.
        """
        return cls.of_steps(
            rtt_s=Steps.constant(rtt_s),
            up=Steps.constant(up_bytes_per_s),
            down=Steps.constant(down_bytes_per_s),
            jitter_s=jitter_s,
            queue_bytes=queue_bytes,
            seed=seed,
        )

    @classmethod
    def from_trace(
        cls,
        trace: LinkTrace,
        *,
        rtt_s: float | None = None,
        up_bytes_per_s: float | None = None,
        jitter_s: float = 0.0,
        queue_bytes: int | None = None,
        seed: int = 0,
    ) -> LinkShape:
        """Replay `trace`. `rtt_s` and `up_bytes_per_s` override what it recorded, and must be given
        where it recorded nothing (else ValueError)."""
        rtt = trace.rtt_s if rtt_s is None else Steps.constant(rtt_s)
        up = trace.up if up_bytes_per_s is None else Steps.constant(up_bytes_per_s)
        if rtt is None or up is None:
            lacking = "round trip time" if rtt is None else "uplink rate"
            raise ValueError(f"trace {trace.name} has no {lacking}, and none was given")
        return cls.of_steps(
            rtt_s=rtt,
            up=up,
            down=trace.down,
            jitter_s=jitter_s,
            queue_bytes=queue_bytes,
            seed=seed,
        )

    @classmethod
    def of_steps(
        cls,
        *,
        rtt_s: Steps,
        up: Steps,
        down: Steps,
        jitter_s: float = 0.0,
        queue_bytes: int | None = None,
        seed: int = 0,
    ) -> LinkShape:
        """Rates in bytes/s and the round trip time as step functions of time."""
        if not 0 <= jitter_s < math.inf:
            raise ValueError("jitter_s must be finite and not negative")
        curve = Curve(levels=(0.0, 1.0), values=(0.0, jitter_s)) if jitter_s else None
        delay_s = Steps(
            starts_s=rtt_s.starts_s,
            values=tuple(v / 2 for v in rtt_s.values),
            period_s=rtt_s.period_s,
        )

        def pipe(rate: Steps, seed: int) -> PipeShape:
            return PipeShape(
                rate=rate,
                delay_s=delay_s,
                jitter_s=curve,
                queue_bytes=default_queue_bytes(rate) if queue_bytes is None else queue_bytes,
                seed=seed,
            )

        return cls(up=pipe(up, 2 * seed), down=pipe(down, 2 * seed + 1))


def default_queue_bytes(rate: Steps) -> int:
    """The queue of a link whose queue nobody stated."""
    return max(MIN_QUEUE_BYTES, int(rate.mean() * DEFAULT_QUEUE_S))


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments.

    Source: splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators",
    with the constants of its reference code), used as a hash so that any index costs the same.
    """
    mask = (1 << 64) - 1
    z = (seed * 0xD1342543DE82EF95 + (index + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)
