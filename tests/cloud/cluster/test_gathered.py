"""All replicas' metrics and status in one."""

from __future__ import annotations

import json
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cloud.cluster.book import Sight
from cloud.cluster.gathered import gathered_metrics, gathered_status
from cloud.server.metrics import Metrics
from cloud.server.status.readings import CURVES
from tests.cloud.cluster.test_book import report


def shown(tokens: int) -> str:
    metrics = Metrics()
    model = metrics.of_model("tiny")
    model.tokens.inc(tokens)
    metrics.bytes_up.inc(7)
    model.tbt_s.observe(0.02)
    metrics.errors.labels(kind='odd"} {kind').inc()
    return generate_latest(metrics.registry).decode()


def test_every_sample_has_its_replica_and_nothing_else_changes() -> None:
    sights = {"a": Sight(shown(3), {}), "b": Sight(shown(4), {})}
    text = gathered_metrics([report("a"), report("b", serving=False)], sights)
    samples: dict[tuple[str, str], dict[str, float]] = {}
    names = []
    for family in text_string_to_metric_families(text):
        names.append(family.name)
        for sample in family.samples:
            labels = dict(sample.labels)
            replica = labels.pop("replica")
            key = f"{sample.name}{json.dumps(labels, sort_keys=True)}"
            samples.setdefault((replica, "one"), {})[key] = sample.value
    assert len(names) == len(set(names))  # the samples of a metric stand together
    for name, tokens in (("a", 3), ("b", 4)):
        own = samples[name, "one"]
        assert own['splitpoint_tokens_total{"model": "tiny"}'] == tokens
        assert own['splitpoint_message_bytes_total{"direction": "up"}'] == 7
        assert own['splitpoint_errors_total{"kind": "odd\\"} {kind"}'] == 1
        assert own['splitpoint_tbt_seconds_bucket{"le": "0.02", "model": "tiny"}'] == 1
    assert samples["a", "one"]["splitpoint_replica_serving{}"] == 1
    assert samples["b", "one"]["splitpoint_replica_serving{}"] == 0


def test_no_replica_shows_nothing() -> None:
    assert "replica=" not in gathered_metrics([], {})
    assert gathered_status({}) == {}


def snapshot(sessions: int, points: list[float | None], **changes: Any) -> dict[str, Any]:
    made = {
        "model": "m",
        "max_sessions": 8,
        "uptime_s": float(sessions),
        "sessions": [{"id": str(index), "tenant": "t"} for index in range(sessions)],
        "tenants": [{"name": "t", "sessions": sessions, "most_sessions": 5}],
        "kv": {"blocks": 10, "used": sessions, "cached": 0},
        "totals": {"tokens": sessions},
        "errors": {"BadFrameError": 1},
        "frame_bytes": 1,
        "curves": {"every_s": 2.0, **{name: list(points) for name in CURVES}},
    }
    return {**made, **changes}


def test_the_status_of_all_adds_up_and_says_who_has_what() -> None:
    sights = {
        "a": Sight("", snapshot(1, [9.0, 1.0, None])),
        "b": Sight("", snapshot(2, [3.0, 5.0], errors={"IdleError": 2})),
    }
    said = gathered_status(sights)
    assert said["replicas"] == ["a", "b"]
    assert [row["replica"] for row in said["sessions"]] == ["a", "b", "b"]
    assert said["max_sessions"] == 16
    assert said["kv"] == {"blocks": 20, "used": 3, "cached": 0}
    assert said["errors"] == {"BadFrameError": 1, "IdleError": 2}
    assert said["tenants"] == [{"name": "t", "sessions": 3, "most_sessions": 5}]
    assert said["curves"]["tokens_per_s"] == [9.0, 4.0, 5.0]  # the newest points, added
    assert said["curves"]["step_s"] == [9.0, 2.0, 5.0]  # a mean
