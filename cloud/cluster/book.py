"""What is known of all replicas: who is there, how full, and what each tenant has in all.

One small actor holds it (`cloud.cluster.on_ray.book`). It keeps nothing on disk: replicas report
several times a second, so a new one knows everything again within `LIVE_S`. Everything here is
plain values; the clock is passed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from cloud.sessions.lifecycle import SessionKey
from cloud.sessions.tenants import Bucket
from optimizer.policy.replicas import ReplicaLoad
from protos.affinity import session_name

# A replica that has said nothing for so long is taken for gone.
LIVE_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """What one replica says of itself. host, port: where it takes streams.

    serving: whether it takes sessions. tenants: sessions that count against each one's limit.
    resumable: tenants by names (`key_name`) of sessions whose stream broke. bundle: names what it
    has loaded.
    """

    name: str
    host: str
    port: int
    serving: bool
    load: ReplicaLoad
    tenants: Mapping[str, int] = field(default_factory=dict)
    resumable: Mapping[str, str] = field(default_factory=dict)
    bundle: str = ""


class SiblingNews(NamedTuple):
    """The answer to a report. others: the loads of the other replicas that take sessions.

    close: names of sessions that began anew elsewhere, or that must make room.
    """

    others: Mapping[str, ReplicaLoad]
    close: tuple[str, ...]


class Roll(NamedTuple):
    """Who is there, by name. is_complete: False while a new book may not know everybody yet."""

    replicas: tuple[ReplicaReport, ...]
    is_complete: bool


class Sight(NamedTuple):
    """What one replica shows of itself: its metrics as text, and its status page's snapshot."""

    metrics: str
    snapshot: Mapping[str, object]


def key_name(key: SessionKey) -> str:
    """A name for a tenant's session that does not tell its id."""
    return session_name(f"{key.tenant}\n{key.session_id}")


class ReplicaBook:
    """See the module's docstring. Every method may be called from another process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._reports: dict[str, tuple[ReplicaReport, float]] = {}
        self._sights: dict[str, Sight] = {}
        self._to_close: dict[str, set[str]] = {}
        self._buckets: dict[str, Bucket] = {}

    def report(self, report: ReplicaReport) -> SiblingNews:
        """Take note of one replica, and tell it about the others."""
        self._reports[report.name] = (report, self._clock())
        close = self._to_close.pop(report.name, set())
        others = {
            one.name: one.load for one in self._live() if one.serving and one.name != report.name
        }
        return SiblingNews(others, tuple(sorted(close)))

    def show(self, name: str, sight: Sight) -> None:
        """Keep what a replica shows of itself, for the metrics and the status page of all."""
        if name in self._reports:  # else nobody would forget it again
            self._sights[name] = sight

    def leave(self, name: str) -> None:
        """A replica has ended."""
        for known in (self._reports, self._sights, self._to_close):
            known.pop(name, None)

    def replicas(self) -> tuple[ReplicaReport, ...]:
        """Those that are there, by name."""
        return self._live()

    def roll(self) -> Roll:
        """The same, for whoever decides by who is missing."""
        return Roll(self._live(), self._clock() - self._began_s >= LIVE_S)

    def sights(self) -> dict[str, Sight]:
        """What they show, by name."""
        live = {one.name for one in self._live()}
        return {name: sight for name, sight in sorted(self._sights.items()) if name in live}

    def take_rows(self, tenant: str, rate: float, num_rows: int) -> float:
        """Count rows against a tenant's rate (rows a second); how many seconds they have to wait.

        One bucket for all replicas, with one second's worth saved up.
        """
        now_s = self._clock()
        bucket = self._buckets.get(tenant) or Bucket.full(rate, at_s=now_s)
        if bucket.rate != rate:  # replicas before and after an update ask in turn
            bucket = bucket.at_rate(rate, at_s=now_s)
        self._buckets[tenant], wait_s = bucket.take(num_rows, at_s=now_s)
        return wait_s

    def may_begin(self, name: str, tenant: str, most: int, num_here: int, session: str) -> bool:
        """Whether a tenant may begin `session` (its `key_name`) on the replica `name`.

        num_here: the tenant's sessions there, this one among them. most: its limit. Sessions that
        other replicas are told to close count no more. Where that is not enough, one that is kept
        for a stream to come has to give way, as on one server: the client asks again.
        """
        num_others = 0
        kept: list[tuple[str, str]] = []
        for other in self._live():
            if other.name == name:
                continue
            if session in other.resumable:
                self._close(other.name, session)
            closing = self._to_close.get(other.name, set())
            own = [one for one, holder in other.resumable.items() if holder == tenant]
            going = closing.intersection(own)
            num_others += max(other.tenants.get(tenant, 0) - len(going), 0)
            kept += [(other.name, one) for one in own if one not in going]
        if num_here + num_others <= most:
            self._note(name, tenant, num_here)
            return True
        if kept:
            self._close(*kept[0])
        return False

    def took_over(self, session: str, replica: str) -> None:
        """`session` began anew elsewhere: `replica` need not keep it."""
        if replica in self._reports:
            self._close(replica, session)

    def _close(self, replica: str, session: str) -> None:
        """Tell `replica` with the answer to its next report."""
        self._to_close.setdefault(replica, set()).add(session)

    def _note(self, name: str, tenant: str, num_here: int) -> None:
        """Count a granted session until its replica's next report does."""
        known = self._reports.get(name)
        if known is not None:
            report, at_s = known
            tenants = {**report.tenants, tenant: max(num_here, report.tenants.get(tenant, 0))}
            self._reports[name] = (replace(report, tenants=tenants), at_s)

    def _live(self) -> tuple[ReplicaReport, ...]:
        now_s = self._clock()
        gone = [name for name, (_, at_s) in self._reports.items() if now_s - at_s > LIVE_S]
        for name in gone:
            self.leave(name)
        return tuple(report for _, (report, _) in sorted(self._reports.items()))
