"""The metrics and the status page of all replicas, put together from what each of them shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from cloud.cluster.book import ReplicaReport, Sight
from cloud.server.http_endpoint import HttpEndpoint
from cloud.server.metrics_endpoint import HEALTH_PATH
from protos.addresses import Address

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

_MEDIA: Final = "text/plain; version=0.0.4; charset=utf-8"
_SUMMED: Final = ("kv", "totals", "errors")
# Curves that are rates or counts add up. The others are means: of those replicas that have one.
_SUMMED_CURVES: Final = (
    "tokens_per_s",
    "bytes_up_per_s",
    "bytes_down_per_s",
    "sessions",
    "sessions_waiting",
    "sessions_parked",
    "kv_blocks_used",
    "errors_per_min",
)


class ViewOfReplicas(Protocol):
    """What the door knows of the replicas now."""

    replicas: tuple[ReplicaReport, ...]
    sights: Mapping[str, Sight]


class GatheredEndpoint(HttpEndpoint):
    """GET /metrics of all replicas, and GET /health: 200 while any of them takes sessions."""

    def __init__(self, view: ViewOfReplicas, address: Address) -> None:
        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if environ["PATH_INFO"] == HEALTH_PATH:
                serves = any(one.serving for one in view.replicas)
                body = b"SERVING\n" if serves else b"NOT_SERVING\n"
                status = "200 OK" if serves else "503 Service Unavailable"
            else:
                body, status = gathered_metrics(view.replicas, view.sights).encode(), "200 OK"
            headers = [("Content-Type", _MEDIA), ("Content-Length", str(len(body)))]
            start_response(status, headers)
            return [body]

        super().__init__(app, address.host, address.port, name="metrics")


def gathered_metrics(replicas: Iterable[ReplicaReport], sights: Mapping[str, Sight]) -> str:
    """All replicas' metrics in Prometheus' text format, each sample with a label `replica`.

    The samples of one metric stand together, as the format demands. `splitpoint_replica_serving`
    says which replicas take sessions, and `splitpoint_replica_fullness` how full each is.
    """
    families: dict[str, tuple[list[str], list[str]]] = {}
    for name, sight in sights.items():
        family = ""
        for line in sight.metrics.splitlines():
            words = line.split(" ", 3)
            if line.startswith(("# HELP ", "# TYPE ")):
                family = words[2]
                heads, _ = families.setdefault(family, ([], []))
                if line not in heads and not any(one.split(" ")[1] == words[1] for one in heads):
                    heads.append(line)
            elif line and not line.startswith("#"):
                families.setdefault(family, ([], []))[1].append(_labelled(line, name))
    lines = [line for heads, samples in families.values() for line in (*heads, *samples)]
    there = tuple(replicas)
    lines.append("# TYPE splitpoint_replica_serving gauge")
    lines += [
        f'splitpoint_replica_serving{{replica="{one.name}"}} {int(one.serving)}' for one in there
    ]
    lines.append("# TYPE splitpoint_replica_fullness gauge")
    lines += [
        f'splitpoint_replica_fullness{{replica="{one.name}"}} {one.load.fullness:g}'
        for one in there
    ]
    return "\n".join([*lines, ""])


def gathered_status(sights: Mapping[str, Sight]) -> dict[str, Any]:
    """One snapshot of the status page for all replicas; sessions say which replica has them.

    What never changes comes from the first one. Counts are added. Curves end at the same time; one
    that began later says nothing of the time before.
    """
    shots: dict[str, Mapping[str, Any]] = {
        name: sight.snapshot for name, sight in sights.items() if sight.snapshot
    }
    if not shots:
        return {}  # the page then says that it has nothing yet
    first = next(iter(shots.values()))
    return {
        **first,
        "replicas": sorted(shots),
        "max_sessions": sum(shot["max_sessions"] for shot in shots.values()),
        "uptime_s": max(shot["uptime_s"] for shot in shots.values()),
        "sessions": [
            {**row, "replica": name} for name, shot in shots.items() for row in shot["sessions"]
        ],
        "models": _models(shots.values()),
        "tenants": _tenants(shots.values()),
        "frame_bytes": sum(shot["frame_bytes"] for shot in shots.values()),
        **{key: _added(shot[key] for shot in shots.values()) for key in _SUMMED},
        "curves": _curves([shot["curves"] for shot in shots.values()]),
    }


def _labelled(sample: str, replica: str) -> str:
    """A sample's line with one more label, put first. Only a label's value may hold a brace."""
    brace, space = sample.find("{"), sample.find(" ")
    label = f'replica="{replica}"'
    if 0 <= brace < space:
        return f"{sample[: brace + 1]}{label},{sample[brace + 1 :]}"
    return f"{sample[:space]}{{{label}}}{sample[space:]}"


def _added(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in counts:
        for key, value in one.items():
            total[key] = total.get(key, 0) + value
    return total


def _tenants(shots: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for shot in shots:
        for row in shot["tenants"]:
            known = rows.setdefault(row["name"], {**row, "sessions": 0})
            known["sessions"] += row["sessions"]
    return list(rows.values())


def _models(shots: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each model's counts over all replicas that have it."""
    by_name: dict[str, list[Mapping[str, float]]] = {}
    for shot in shots:
        for row in shot.get("models", ()):
            counts = {key: value for key, value in row.items() if key != "name"}
            by_name.setdefault(row["name"], []).append(counts)
    return [{"name": name, **_added(counts)} for name, counts in by_name.items()]


def _curves(curves: list[Mapping[str, Any]]) -> dict[str, Any]:
    names = [name for name in curves[0] if name != "every_s"]
    length = max(len(one[names[0]]) for one in curves)
    made: dict[str, Any] = {"every_s": curves[0]["every_s"]}
    for name in names:
        rows = [[None] * (length - len(one[name])) + list(one[name]) for one in curves]
        made[name] = [_point(name, column) for column in zip(*rows, strict=True)]
    return made


def _point(name: str, values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return sum(known) if name in _SUMMED_CURVES else sum(known) / len(known)
