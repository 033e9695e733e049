"""Measure the link to a server: round trips, then up and down rate with a full pipe.

The method is ours. Round trips: small messages, one at a time, on the idle link. The probe
subtracts what the network stacks take for the same exchange on loopback (`stack_s`), because costs
count the stacks apart from the link. It assumes equally fast stacks on both machines.

A rate: chunks are sent back to back, so that the slowest part of the path spaces them out. The
spacing of the answers is then the rate of that part, whatever the delay. The first chunks of a
burst do not count: they fill the pipe and the transport's window. Bursts grow until one keeps the
link busy for long enough, or the byte cap is spent. The estimators are pure functions.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np

from edge.errors import InputError, PeerError
from hwprofiles.links.profile import LinkProfile, Quantiles
from protos.messages import ProbeChunk

DEFAULT_CAP_BYTES: Final = 16 << 20
MIN_CAP_BYTES: Final = 64 << 10
CHUNK_BYTES: Final = 16 << 10
FIRST_BURST_BYTES: Final = 64 << 10
NUM_PINGS: Final = 20
NUM_SEGMENTS: Final = 5
# HTTP/2 frame headers (9 bytes each 16 KiB), gRPC's message prefix (5), protobuf tags (8).
OVERHEAD_BYTES: Final = 22
TIMEOUT_S: Final = 20.0

Progress = Callable[[float, str], None]


class Arrival(NamedTuple):
    """One answer, and when it had arrived on the monotonic clock."""

    chunk: ProbeChunk
    at_s: float


class ProbeStream(Protocol):
    """One open probe call. Methods may raise a TransportError."""

    def send(self, chunk: ProbeChunk) -> None:
        """Queue one message; does not wait for the link."""
        ...

    def receive(self, timeout_s: float) -> Arrival:
        """The next answer; DeadlineError when none comes within `timeout_s`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RateEstimate:
    """Bytes per second of a full pipe: overall, and in equal parts of the window."""

    bytes_per_s: float
    segments: tuple[float, ...]
    window_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMeasurement:
    """What one probe found.

    rtt_s: the link's round trips. stack_s: what was subtracted from each for both sides' network
    stacks. capped: a rate was measured with fewer bytes than needed, so it may be too low.
    """

    rtt_s: tuple[float, ...]
    stack_s: float
    up: RateEstimate
    down: RateEstimate
    spent_bytes: int
    cap_bytes: int
    capped: bool

    def profile(self, *, name: str, source: str) -> LinkProfile:
        """As a link profile; `source` is the command and date."""

        def quantiles(values: Sequence[float]) -> Quantiles:
            low, middle, high = (float(q) for q in np.quantile(values, (0.05, 0.5, 0.95)))
            return Quantiles(p05=low, p50=middle, p95=high, source=source, measured=True)

        return LinkProfile(
            name=name,
            description=f"Measured by the link probe with {self.spent_bytes} bytes",
            up_bytes_per_s=quantiles(self.up.segments),
            down_bytes_per_s=quantiles(self.down.segments),
            rtt_s=quantiles(self.rtt_s),
        )


def estimate_rate(arrivals_s: Sequence[float], chunk_bytes: int, settle_s: float) -> RateEstimate:
    """The rate that spaced these arrivals of equal chunks; needs two at least.

    Arrivals within `settle_s` of the first are left out, but never more than half of them.
    """
    if len(arrivals_s) < 2:
        raise ValueError("a rate needs two arrivals at least")
    start = next(
        (i for i, at_s in enumerate(arrivals_s) if at_s >= arrivals_s[0] + settle_s),
        len(arrivals_s),
    )
    kept = arrivals_s[min(start, len(arrivals_s) // 2 - 1 if len(arrivals_s) > 2 else 0) :]
    window_s = max(kept[-1] - kept[0], 1e-9)
    edges = np.linspace(0, len(kept) - 1, min(NUM_SEGMENTS, len(kept) - 1) + 1).astype(int)
    segments = tuple(
        float((right - left) * chunk_bytes / max(kept[right] - kept[left], 1e-9))
        for left, right in itertools.pairwise(edges)
    )
    rate = (len(kept) - 1) * chunk_bytes / window_s
    return RateEstimate(bytes_per_s=rate, segments=segments, window_s=window_s)


def next_burst_bytes(last: RateEstimate, settle_s: float, target_s: float) -> int:
    """Bytes that keep the link busy for `target_s` after settling, at the last burst's rate."""
    wanted = last.bytes_per_s * (target_s + settle_s) * 1.2
    return max(2 * CHUNK_BYTES, min(math.ceil(wanted), 32 << 20))


def probe_link(
    stream: ProbeStream,
    *,
    cap_bytes: int = DEFAULT_CAP_BYTES,
    target_s: float = 0.6,
    stack_s: float = 0.0,
    progress: Progress = lambda _share, _what: None,
    clock: Callable[[], float] = time.perf_counter,
) -> LinkMeasurement:
    """Measure round trips and both rates over `stream`, spending at most `cap_bytes` in all.

    `stack_s`: what both sides' network stacks add to a round trip.
    Raises InputError for a cap too small to say anything, and the stream's TransportErrors.
    """
    if cap_bytes < MIN_CAP_BYTES:
        raise InputError(f"the link probe needs a cap of at least {MIN_CAP_BYTES} bytes")
    sender = _Sender(stream, cap_bytes)
    progress(0.0, "round trips")
    round_trips = tuple(sender.ping(clock) for _ in range(NUM_PINGS + 1))[1:]  # the first opens
    settle_s = float(np.median(round_trips)) + 0.05
    target_s = max(target_s, 3 * settle_s)
    progress(0.3, "up")
    up, up_capped = _rate(sender, settle_s, target_s, cap_bytes // 2, up=True)
    progress(0.65, "down")
    down, down_capped = _rate(sender, settle_s, target_s, cap_bytes, up=False)
    progress(1.0, "done")
    return LinkMeasurement(
        # A loopback slower than the link would be noise: a tenth of a round trip stays.
        rtt_s=tuple(max(seconds - stack_s, seconds / 10) for seconds in round_trips),
        stack_s=stack_s,
        up=up,
        down=down,
        spent_bytes=sender.spent_bytes,
        cap_bytes=cap_bytes,
        capped=up_capped or down_capped,
    )


def _rate(
    sender: _Sender, settle_s: float, target_s: float, until_bytes: int, *, up: bool
) -> tuple[RateEstimate, bool]:
    """Grow bursts until one fills the pipe for `target_s`, or `until_bytes` are spent in all."""
    burst = FIRST_BURST_BYTES
    best: RateEstimate | None = None
    while True:
        room = until_bytes - sender.spent_bytes
        count = min(burst, room) // (CHUNK_BYTES + 2 * OVERHEAD_BYTES)
        if best is not None and count * CHUNK_BYTES < burst / 2:
            return best, True
        arrivals = sender.burst(max(2, count), up=up)
        found = estimate_rate(arrivals, CHUNK_BYTES + OVERHEAD_BYTES, settle_s)
        best = found if best is None or found.window_s >= best.window_s else best
        if found.window_s >= target_s:
            return best, False
        grown = next_burst_bytes(found, settle_s, target_s)
        burst = max(2 * burst, min(grown, 8 * burst))


class _Sender:
    """Numbers the messages, matches the answers, and counts the bytes."""

    def __init__(self, stream: ProbeStream, cap_bytes: int) -> None:
        self._stream = stream
        self._cap_bytes = cap_bytes
        self._sequence = 0
        self._asked: deque[tuple[int, int]] = deque()  # sequence and bytes wanted, not answered yet
        self.spent_bytes = 0

    def ping(self, clock: Callable[[], float]) -> float:
        """Seconds of one small round trip."""
        sent_s = clock()
        self._send(0, 0)
        return self._receive() - sent_s

    def burst(self, count: int, *, up: bool) -> list[float]:
        """When each of `count` chunks, sent or asked for back to back, was answered."""
        for _ in range(count):
            self._send(CHUNK_BYTES if up else 0, 0 if up else CHUNK_BYTES)
        return [self._receive() for _ in range(count)]

    def _receive(self) -> float:
        """When the oldest question was answered; PeerError for an answer to another one."""
        chunk, at_s = self._stream.receive(TIMEOUT_S)
        sequence, want_bytes = self._asked.popleft()
        if (chunk.sequence, chunk.padding_bytes) != (sequence, want_bytes):
            raise PeerError(
                f"the server answered probe {chunk.sequence} with {chunk.padding_bytes} bytes; "
                f"probe {sequence} had asked for {want_bytes}"
            )
        return at_s

    def _send(self, padding_bytes: int, want_bytes: int) -> None:
        self._sequence += 1
        self.spent_bytes += padding_bytes + want_bytes + 2 * OVERHEAD_BYTES
        self._asked.append((self._sequence, want_bytes))
        self._stream.send(
            ProbeChunk(sequence=self._sequence, padding_bytes=padding_bytes, want_bytes=want_bytes)
        )
