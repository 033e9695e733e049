"""What is known of a long piece of work: stage, share done, time taken, time left.

No clock and no screen of its own: `long_work` shows it, and tests ask it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

# What is done this soon was there before, as after an interrupted build: no rate is seen in it.
FREE_S: Final = 2.0
# Before so much is done, the time left is a guess that misleads.
LEAST_SHARE: Final = 0.05


class WorkState:
    """The state of one piece of work. It is written by one thread and read by another.

    label: what the work is, for people. clock: seconds, monotonic.
    """

    def __init__(self, label: str, clock: Callable[[], float]) -> None:
        self.label = label
        self._clock = clock
        self._begun_s = clock()
        self._stage = ""
        self._share: float | None = None
        self._base = (self._begun_s, 0.0)  # from where on the rate counts: time, share

    def stage(self, name: str) -> None:
        """Name the stage that begins."""
        self._stage = name

    def share(self, done: float) -> None:
        """Tell the share of the whole work that is done, 0 to 1. It never goes back."""
        done = max(min(done, 1.0), self._share or 0.0) if math.isfinite(done) else 0.0
        now_s = self._clock()
        if now_s - self._begun_s <= FREE_S:
            self._base = (now_s, done)
        self._share = done

    def tell(self, done: float, name: str) -> None:
        """Tell the share done, and name the stage that begins."""
        self.stage(name)
        self.share(done)

    def steps(self, name: str, done: int, total: int) -> None:
        """Name the stage, and tell how many of the work's steps are done."""
        self.stage(name)
        self.share(done / max(total, 1))

    def staged(self, costs: Mapping[str, float]) -> Callable[[str, int, int], None]:
        """A function for (stage, steps done, steps in all) of work in stages.

        costs: about how long each stage takes, in any unit, in their order. A stage that is not
        named there is shown and moves nothing.
        """
        names, total = list(costs), sum(costs.values())

        def tell(name: str, done: int, steps: int) -> None:
            self.stage(f"{name} ({done} of {steps})" if steps > 1 else name)
            if name in costs:
                before = sum(costs[other] for other in names[: names.index(name)])
                self.share((before + costs[name] * done / max(steps, 1)) / total)

        return tell

    def within(self, begin: float, end: float, stage: str = "") -> Callable[[float], None]:
        """A function for the share of one part, which is [begin, end] of the whole."""
        if stage:
            self.stage(stage)
        return lambda share: self.share(begin + (end - begin) * share)

    @property
    def title(self) -> str:
        """The label, and the stage where there is one."""
        return f"{self.label}: {self._stage}" if self._stage else self.label

    @property
    def done(self) -> float | None:
        """The share done, 0 to 1; None while it is not known."""
        return self._share

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began."""
        return self._clock() - self._begun_s

    @property
    def left_s(self) -> float | None:
        """Seconds that are probably left; None while that is not known."""
        at_s, share = self._base
        now_s = self._clock()
        if self._share is None or self._share - share < LEAST_SHARE or now_s <= at_s:
            return None
        return (now_s - at_s) * (1 - self._share) / (self._share - share)

    def line(self) -> str:
        """One line: title, share, time taken, time left."""
        parts = [self.title]
        if self._share is not None:
            parts.append(f"{100 * self._share:.0f} %")
        parts.append(f"{duration_text(self.elapsed_s)} so far")
        if self.left_s is not None:
            parts.append(f"about {duration_text(self.left_s)} left")
        return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """Whole seconds, minutes and hours: "42 s", "3 min 05 s", "2 h 07 min"."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
