"""Prometheus metrics of one server, in a registry of its own.

Labels take few values only (kinds of errors, directions), and never session ids or tenants' texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cloud.errors import CloudError
from protos.messages import Frame, Timings

_SECONDS: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_PREFIX: Final = "splitpoint_"


class Metrics:
    """Counts what happens. Safe to use from every thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(_PREFIX + name, text, buckets=buckets, registry=registry)

        self.ttft_s = histogram("ttft_seconds", "From Open to the first token", _SECONDS)
        self.tbt_s = histogram("tbt_seconds", "Between two answers with tokens", _SECONDS)
        self.queue_s = histogram("queue_seconds", "A frame's wait for its batch", _SECONDS)
        self.admission_s = histogram(
            "admission_wait_seconds", "Wait of admitted sessions", _SECONDS
        )
        self.step_s = histogram("step_seconds", "One batch through the layers", _SECONDS)
        self.batch_sessions = histogram("batch_sessions", "Sessions in a batch", _ROWS)
        self.batch_rows = histogram("batch_rows", "Rows in a batch", _ROWS)
        self.tokens = Counter(_PREFIX + "tokens", "Tokens answered", registry=registry)
        self.rows = Counter(_PREFIX + "rows", "Rows received", registry=registry)
        self.id_rows = Counter(
            _PREFIX + "id_rows", "Rows that came as token ids", registry=registry
        )
        self.sessions = Counter(
            _PREFIX + "sessions_opened", "Sessions by how they began", ["how"], registry=registry
        )
        self.errors = Counter(
            _PREFIX + "errors", "Streams ended by an error, by kind", ["kind"], registry=registry
        )
        self.bytes = Counter(
            _PREFIX + "message_bytes", "Bytes of messages", ["direction"], registry=registry
        )
        self.bytes_up = self.bytes.labels(direction="up")
        self.bytes_down = self.bytes.labels(direction="down")

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Register a gauge; `value` is called whenever somebody reads the metrics."""
        Gauge(_PREFIX + name, text, registry=self.registry).set_function(value)

    def frame_waited(self, wait_s: float) -> None:
        """A frame waited so many seconds for its first batch (`LoopObserver`)."""
        self.queue_s.observe(wait_s)

    def step_ran(self, duration_s: float, *, num_sessions: int, num_rows: int) -> None:
        """A batch ran (`LoopObserver`)."""
        self.step_s.observe(duration_s)
        self.batch_sessions.observe(num_sessions)
        self.batch_rows.observe(num_rows)

    def frame_answered(self, frame: Frame, timings: Timings) -> None:
        """Nothing is counted of an answered frame (`LoopObserver`)."""

    def failed(self, error: CloudError) -> None:
        """A stream ended with this error."""
        self.errors.labels(kind=type(error).__name__).inc()
