"""What the local API did, in Prometheus' text format: requests, tokens, bytes and times.

Counters only, kept in memory; a scraper makes rates of them. No text, no prompt and no key is in
them. The format: https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from edge.generation.report import Completion

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX: Final = "splitpoint_api"


@dataclass(frozen=True, slots=True)
class _Figure:
    name: str
    kind: str
    what: str


_COUNTERS: Final = (
    _Figure("requests_total", "counter", "Requests by HTTP status"),
    _Figure("answers_total", "counter", "Answers by finish reason"),
    _Figure("prompt_tokens_total", "counter", "Tokens of prompts"),
    _Figure("tokens_total", "counter", "Tokens of answers"),
    _Figure("uplink_bytes_total", "counter", "Bytes sent to the server"),
    _Figure("downlink_bytes_total", "counter", "Bytes received from the server"),
    _Figure("ttft_seconds_sum", "counter", "Seconds to the first token, all answers together"),
    _Figure("ttft_seconds_count", "counter", "Answers with a first token"),
    _Figure("reconnects_total", "counter", "Streams that were replaced"),
)
_LABELS: Final = {"requests_total": "status", "answers_total": "finish_reason"}


class ApiFigures:
    """Lives on the event loop's thread. running, waiting: how many requests are so now."""

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._running = running
        self._waiting = waiting
        self._counts: Counter[tuple[str, str]] = Counter()

    def answered(self, status: int) -> None:
        """A request was answered with this status."""
        self._counts["requests_total", str(status)] += 1

    def completed(self, completions: Sequence[Completion]) -> None:
        """The answers of one request have ended."""
        for done in completions:
            figures = done.to_json()
            self._counts["answers_total", done.finish_reason] += 1
            self._add("prompt_tokens_total", done.num_prompt_tokens)
            self._add("tokens_total", len(done.token_ids))
            self._add("uplink_bytes_total", figures["uplink_bytes"])
            self._add("downlink_bytes_total", figures["downlink_bytes"])
            self._add("reconnects_total", done.reconnects)
            if done.token_ids:
                self._add("ttft_seconds_sum", done.ttft_s)
                self._add("ttft_seconds_count", 1)

    def text(self) -> str:
        """All figures."""
        lines: list[str] = []
        for name, what, now in (
            ("running", "Requests that are answered now", self._running()),
            ("waiting", "Requests that wait for a slot", self._waiting()),
        ):
            lines += [f"# HELP {_PREFIX}_{name} {what}.", f"# TYPE {_PREFIX}_{name} gauge"]
            lines.append(f"{_PREFIX}_{name} {now}")
        for figure in _COUNTERS:
            full = f"{_PREFIX}_{figure.name}"
            lines += [f"# HELP {full} {figure.what}.", f"# TYPE {full} {figure.kind}"]
            label = _LABELS.get(figure.name)
            if label is None:
                lines.append(f"{full} {self._counts[figure.name, '']:g}")
                continue
            for (name, value), count in sorted(self._counts.items()):
                if name == figure.name:
                    lines.append(f'{full}{{{label}="{value}"}} {count:g}')
        return "\n".join(lines) + "\n"

    def _add(self, name: str, value: float) -> None:
        # Whole numbers and seconds share one counter of numbers.
        self._counts[name, ""] += value  # type: ignore[assignment]
