"""What a conversation has cost so far: tokens, times and bytes of its answers."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from splitpoint.views.sizes import size_text, time_text

if TYPE_CHECKING:
    from edge.generation.report import Completion


class ChatStatistics:
    """Sums over the answers of one chat."""

    def __init__(self) -> None:
        self._ttft_s: list[float] = []
        self._rates: list[float] = []
        self._tokens = 0
        self._up_bytes = 0
        self._down_bytes = 0
        self._reconnects = 0
        self._levels: dict[str, int] = {}

    def add(self, completion: Completion) -> None:
        """Count an answer, whole or in part."""
        figures = completion.to_json()
        if completion.token_ids:
            self._ttft_s.append(completion.ttft_s)
        if completion.tokens_per_s:
            self._rates.append(completion.tokens_per_s)
        self._tokens += len(completion.token_ids)
        self._up_bytes += figures["uplink_bytes"]
        self._down_bytes += figures["downlink_bytes"]
        self._reconnects += completion.reconnects
        for level, count in figures["level_counts"].items():
            self._levels[level] = self._levels.get(level, 0) + count

    def lines(self) -> list[str]:
        """For people; times are medians over the answers."""
        if not self._ttft_s:
            return ["no answers yet"]
        lines = [
            f"{len(self._ttft_s)} answers, {self._tokens} tokens",
            f"first token after {time_text(statistics.median(self._ttft_s))}",
        ]
        if self._rates:
            lines[-1] += f", then {statistics.median(self._rates):.3g} tokens/s"
        lines.append(f"up {size_text(self._up_bytes)}, down {size_text(self._down_bytes)}")
        if self._levels:
            frames = ", ".join(f"{name} {count}" for name, count in self._levels.items())
            lines.append(f"frames by level: {frames}")
        if self._reconnects:
            lines.append(f"the server was lost and found {self._reconnects} times")
        return lines
