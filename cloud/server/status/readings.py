"""The metrics of one moment as plain numbers, and what happened between two such moments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry

from cloud.server.metrics import MODEL_LABEL

_PREFIX: Final = "splitpoint_"
# Curves of the page that are a histogram's mean: its name, and the metric that it comes from.
MEANS: Final = {
    "ttft_s": "ttft_seconds",
    "tbt_s": "tbt_seconds",
    "queue_s": "queue_seconds",
    "step_s": "step_seconds",
    "batch_sessions": "batch_sessions",
    "batch_rows": "batch_rows",
}
RATES: Final = {
    "tokens_per_s": "tokens_total",
    "bytes_up_per_s": "message_bytes_total/up",
    "bytes_down_per_s": "message_bytes_total/down",
}
GAUGES: Final = ("sessions", "sessions_waiting", "sessions_parked", "kv_blocks_used")
CURVES: Final = (*RATES, *GAUGES, *MEANS, "errors_per_min")
_ERRORS: Final = "errors_total/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Every sample of a registry: name, and label values after slashes. at_s: on any one clock.

    values: over all models together. of_models: the same of each model that has a label.
    """

    at_s: float
    values: dict[str, float]
    of_models: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, registry: CollectorRegistry, *, at_s: float) -> Reading:
        """Read all metrics now, without the prefix of their names."""
        values: dict[str, float] = {}
        of_models: dict[str, dict[str, float]] = {}
        for family in registry.collect():
            for sample in family.samples:
                if sample.name.endswith(("_bucket", "_created")):
                    continue
                labels = dict(sample.labels)
                model = labels.pop(MODEL_LABEL, None)
                name = "/".join((sample.name.removeprefix(_PREFIX), *labels.values()))
                values[name] = values.get(name, 0.0) + sample.value
                if model is not None:
                    of_models.setdefault(model, {})[name] = sample.value
        return cls(at_s=at_s, values=values, of_models=of_models)

    def value(self, name: str) -> float:
        """One sample; 0 where nothing has happened yet."""
        return self.values.get(name, 0.0)

    @property
    def errors(self) -> dict[str, int]:
        """Streams ended by an error since the start, by kind."""
        return {
            name.removeprefix(_ERRORS): int(value)
            for name, value in sorted(self.values.items())
            if name.startswith(_ERRORS)
        }


def between(before: Reading, after: Reading) -> dict[str, float | None]:
    """A point of every curve (CURVES): rates and means between two readings, and gauges after.

    A mean of nothing is None: a gap in its curve.
    """
    span_s = max(after.at_s - before.at_s, 1e-9)

    def gain(name: str) -> float:
        return after.value(name) - before.value(name)

    def mean(metric: str) -> float | None:
        count = gain(f"{metric}_count")
        return gain(f"{metric}_sum") / count if count > 0 else None

    num_errors = sum(after.errors.values()) - sum(before.errors.values())
    return {
        **{name: gain(metric) / span_s for name, metric in RATES.items()},
        **{name: after.value(name) for name in GAUGES},
        **{name: mean(metric) for name, metric in MEANS.items()},
        "errors_per_min": 60 * num_errors / span_s,
    }
