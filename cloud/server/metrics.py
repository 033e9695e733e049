"""Prometheus metrics of one server, in a registry of its own.

Labels take few values only (models, kinds of errors, directions), and never session ids or tenants'
texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cloud.errors import CloudError
from protos.messages import Frame, Timings

_SECONDS: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_PREFIX: Final = "splitpoint_"
MODEL_LABEL: Final = "model"


class Metrics:
    """Counts what happens. Safe to use from every thread.

    What belongs to one model has a label `model`, also where the server has one alone.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                _PREFIX + name, text, [MODEL_LABEL], buckets=buckets, registry=registry
            )

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=registry)

        self._ttft_s = histogram("ttft_seconds", "From Open to the first token", _SECONDS)
        self._tbt_s = histogram("tbt_seconds", "Between two answers with tokens", _SECONDS)
        self._queue_s = histogram("queue_seconds", "A frame's wait for its batch", _SECONDS)
        self._admission_s = histogram(
            "admission_wait_seconds", "Wait of admitted sessions", _SECONDS
        )
        self._step_s = histogram("step_seconds", "One batch through the layers", _SECONDS)
        self._batch_sessions = histogram("batch_sessions", "Sessions in a batch", _ROWS)
        self._batch_rows = histogram("batch_rows", "Rows in a batch", _ROWS)
        self._tokens = counter("tokens", "Tokens answered", MODEL_LABEL)
        self._rows = counter("rows", "Rows received", MODEL_LABEL)
        self._id_rows = counter("id_rows", "Rows that came as token ids", MODEL_LABEL)
        self._sessions = counter(
            "sessions_opened", "Sessions by how they began", MODEL_LABEL, "how"
        )
        self.errors = counter("errors", "Streams ended by an error, by kind", "kind")
        self.bytes = counter("message_bytes", "Bytes of messages", "direction")
        self.bytes_up = self.bytes.labels(direction="up")
        self.bytes_down = self.bytes.labels(direction="down")

    def of_model(self, model: str) -> ModelMetrics:
        """The metrics of one model. model: its name on this server."""
        return ModelMetrics(
            ttft_s=self._ttft_s.labels(model=model),
            tbt_s=self._tbt_s.labels(model=model),
            queue_s=self._queue_s.labels(model=model),
            admission_s=self._admission_s.labels(model=model),
            step_s=self._step_s.labels(model=model),
            batch_sessions=self._batch_sessions.labels(model=model),
            batch_rows=self._batch_rows.labels(model=model),
            tokens=self._tokens.labels(model=model),
            rows=self._rows.labels(model=model),
            id_rows=self._id_rows.labels(model=model),
            opened=lambda how: self._sessions.labels(model=model, how=how).inc(),
        )

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Register a gauge; `value` is called whenever somebody reads the metrics."""
        Gauge(_PREFIX + name, text, registry=self.registry).set_function(value)

    def model_gauge(self, name: str, text: str, values: Mapping[str, Callable[[], float]]) -> None:
        """Register a gauge with a value for each model."""
        gauge = Gauge(_PREFIX + name, text, [MODEL_LABEL], registry=self.registry)
        for model, value in values.items():
            gauge.labels(model=model).set_function(value)

    def failed(self, error: CloudError) -> None:
        """A stream ended with this error."""
        self.errors.labels(kind=type(error).__name__).inc()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetrics:
    """The metrics of one model's sessions and steps (`LoopObserver`).

    opened: counts a session, by how it began.
    """

    ttft_s: Histogram
    tbt_s: Histogram
    queue_s: Histogram
    admission_s: Histogram
    step_s: Histogram
    batch_sessions: Histogram
    batch_rows: Histogram
    tokens: Counter
    rows: Counter
    id_rows: Counter
    opened: Callable[[str], None]

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
