"""What the status page shows, made at intervals on the event loop and read by other threads.

Sessions belong to the event loop's thread. So the loop makes a whole new object each time, and the
page's threads only ever see one that is finished. It holds sizes, times and counts. It never holds
texts, token ids, prefixes or whole session ids, which are secrets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from cloud.server.conversations import Conversations
from cloud.server.metrics import Metrics
from cloud.server.status.readings import CURVES, Reading, between
from cloud.sessions.lifecycle import Lifecycle, SessionLife, SessionState
from cloud.sessions.tenants import Tenants

logger = logging.getLogger(__name__)

EVERY_S: Final = 5.0
HOUR_S: Final = 3600.0
SHORT_ID_CHARS: Final = 8  # as in the logs: enough to tell sessions apart
_SHOWN_STATES: Final = (
    SessionState.RUNNING,
    SessionState.RESUMABLE,
    SessionState.WAITING,
    SessionState.CLOSING,
)
_KV: Final = {"blocks": "kv_blocks", "used": "kv_blocks_used", "cached": "kv_blocks_cached"}


class StatusBoard:
    """The newest snapshot and the points of the last hour: a ring, so its memory is bounded.

    Source: ours. facts: what never changes, such as the model's name.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        lifecycle: Lifecycle,
        conversations: Conversations,
        tenants: Tenants,
        facts: Mapping[str, Any],
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._conversations = conversations
        self._tenants = tenants
        self._facts = dict(facts)
        self._every_s = every_s
        self._clock = clock
        self._started_s = clock()
        self._points: deque[dict[str, float | None]] = deque(maxlen=int(HOUR_S / every_s))
        self._before = self._read()
        self.latest: dict[str, Any] = self._snapshot(self._before)

    async def run(self) -> None:
        """Make a snapshot at every interval until cancelled. A failure costs one snapshot."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                self.tick()
            except Exception:
                logger.exception("the status page could not be brought up to date")

    def tick(self) -> None:
        """Add a point to the curves, and replace the snapshot."""
        now = self._read()
        self._points.append(between(self._before, now))
        self._before = now
        self.latest = self._snapshot(now)

    def _read(self) -> Reading:
        return Reading.of(self._metrics.registry, at_s=self._clock())

    def _snapshot(self, now: Reading) -> dict[str, Any]:
        lives = [life for state in _SHOWN_STATES for life in self._lifecycle.in_state(state)]
        return {
            **self._facts,
            "at_unix_s": time.time(),
            "uptime_s": now.at_s - self._started_s,
            "sessions": self._sessions(lives),
            "tenants": self._tenant_rows(lives),
            "models": [
                {"name": name, **_model_row(values)} for name, values in now.of_models.items()
            ],
            "kv": {name: int(now.value(metric)) for name, metric in _KV.items()},
            "frame_bytes": int(now.value("frame_bytes")),
            "totals": {
                "tokens": int(now.value("tokens_total")),
                "rows": int(now.value("rows_total")),
                "bytes_up": int(now.value("message_bytes_total/up")),
                "bytes_down": int(now.value("message_bytes_total/down")),
                "opened": int(now.value("sessions_opened_total/opened")),
                "resumed": int(now.value("sessions_opened_total/resumed")),
            },
            "errors": now.errors,
            "curves": {
                "every_s": self._every_s,
                **{name: [_short(point[name]) for point in self._points] for name in CURVES},
            },
        }

    def _sessions(self, lives: list[SessionLife]) -> list[dict[str, Any]]:
        figures = self._conversations.figures_now()
        rows = []
        for life in lives:
            row: dict[str, Any] = {
                "id": life.key.session_id[:SHORT_ID_CHARS],
                "tenant": life.key.tenant,
                "model": life.model,
                "state": life.state.name.lower(),
            }
            if life.state is SessionState.RUNNING and life.key in figures:
                row |= figures[life.key]._asdict()
            rows.append(row)
        return rows

    def _tenant_rows(self, lives: list[SessionLife]) -> list[dict[str, Any]]:
        """Every tenant of the token file; without one, those who are here."""
        here = dict.fromkeys(life.key.tenant for life in lives)
        limits = {tenant.name: tenant for tenant in self._tenants.holders}
        return [
            {
                "name": name,
                "sessions": self._lifecycle.num_of_tenant(name),
                "most_sessions": limits[name].sessions if name in limits else None,
                "most_tokens_per_s": limits[name].tokens_per_s if name in limits else None,
            }
            for name in {**limits, **here}
        ]


def _model_row(values: Mapping[str, float]) -> dict[str, int]:
    """One model's sessions, KV blocks and tokens."""
    row = {name: int(values.get(metric, 0)) for name, metric in _KV.items()}
    counts = {"sessions": "sessions", "waiting": "sessions_waiting", "tokens": "tokens_total"}
    return {**{name: int(values.get(metric, 0)) for name, metric in counts.items()}, **row}


def _short(value: float | None) -> float | None:
    """Six figures: a curve of 720 points stays small."""
    return None if value is None else float(f"{value:.6g}")
