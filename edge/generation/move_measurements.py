"""What a move costs, as the generations of a device measure it: the link, and the cloud's layers.

The uplink's rate comes from the frames of prompts and moves. They travel one behind the other, so
an answer says: so many bytes took at most the time since the first of them was sent, less a round
trip and the cloud's own time. The quickest of the newest stretches counts. Where the device's own
layers were slower than the link, that is too slow a rate: then a move goes by ids more often.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final, NamedTuple

from edge.generation.step_observer import AnsweredStep

MIN_BYTES: Final = 4096  # fewer say little about a link's rate
STRETCHES: Final = 16
_NEWEST: Final = 0.5  # weight of the newest measurement in a mean


class _Stretch(NamedTuple):
    """Bytes that were sent one behind the other, and the seconds until the answer to the last."""

    num_bytes: int
    seconds: float


class MoveMeasurements:
    """See the module's docstring. Safe from several threads. num_layers: of the model."""

    def __init__(self, *, num_layers: int) -> None:
        self._num_layers = num_layers
        self._lock = threading.Lock()
        self._stretches: deque[_Stretch] = deque(maxlen=STRETCHES)
        self._round_trip_s: float | None = None
        self._layers_s: float | None = None

    @property
    def round_trip_s(self) -> float:
        """Of a decode step, without what the cloud computed; 0: unknown."""
        with self._lock:
            return self._round_trip_s or 0.0

    @property
    def seconds_per_byte(self) -> float | None:
        """Of the uplink; None: unknown."""
        with self._lock:
            trip_s = self._round_trip_s or 0.0
            return min(
                (max(each.seconds - trip_s, 0.0) / each.num_bytes for each in self._stretches),
                default=None,
            )

    @property
    def layers_s(self) -> float | None:
        """The cloud's seconds a token for all layers, in frames of prompts; None: unknown."""
        with self._lock:
            return self._layers_s

    def sent(self, num_bytes: int, seconds: float) -> None:
        """So many bytes were sent one behind the other and answered after so many seconds."""
        if num_bytes >= MIN_BYTES:
            with self._lock:
                self._stretches.append(_Stretch(num_bytes, seconds))

    def round_trip(self, seconds: float) -> None:
        """A decode step's time on the wire."""
        with self._lock:
            self._round_trip_s = _mixed(self._round_trip_s, seconds)

    def computed(self, seconds: float, *, num_rows: int, num_layers: int) -> None:
        """The cloud ran so many of its layers on so many rows."""
        if num_layers > 0 and seconds > 0:
            with self._lock:
                each_s = seconds / num_rows * self._num_layers / num_layers
                self._layers_s = _mixed(self._layers_s, each_s)

    def watcher(self, split: int) -> MoveWatcher:
        """What tells of one generation's steps at `split`."""
        return MoveWatcher(self, num_back_layers=self._num_layers - split)

    @property
    def num_layers(self) -> int:
        """Of the model."""
        return self._num_layers


class MoveWatcher:
    """A StepWatcher of one generation. num_back_layers: those from its split on."""

    def __init__(self, measured: MoveMeasurements, *, num_back_layers: int) -> None:
        self._measured = measured
        self._num_back_layers = num_back_layers
        self._first_sent_s: float | None = None
        self._num_bytes = 0

    def answered(self, step: AnsweredStep) -> str:
        """See StepWatcher."""
        trace = step.trace
        if not step.is_prefill:
            if trace.num_rows == 1 and step.alone:
                self._measured.round_trip(trace.wire_s)
            return ""
        if self._first_sent_s is None:
            self._first_sent_s = step.at_s - trace.round_trip_s
        self._num_bytes += trace.uplink_bytes
        elapsed_s = step.at_s - self._first_sent_s
        self._measured.sent(self._num_bytes, elapsed_s - trace.cloud_s)
        num_layers = self._measured.num_layers if trace.is_ids else self._num_back_layers
        if not trace.is_kv:
            self._measured.computed(
                trace.cloud_compute_s, num_rows=trace.num_rows, num_layers=num_layers
            )
        return ""


def _mixed(before: float | None, now: float) -> float:
    return now if before is None else before + _NEWEST * (now - before)
