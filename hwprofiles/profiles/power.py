"""What minutes of work without a pause did to a machine: the speed that lasts, heat and clocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# The least share of its short speed that a machine keeps; a smaller one is a wrong figure.
LEAST_SHARE: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class SustainedLoad:
    """One-row steps of the edge's layers, one after another, for `duration_s`.

    `peak_steps_per_s`: in short bursts between the passes that measured the other rates.
    `sustained_steps_per_s`: in the last third of the run. Both are medians over steps.
    `drop_after_s`: when the rate fell, where it fell by more than a tenth. `start_celsius`: before
    the run; `start_hz`: in its first window; the others at its end. `is_throttled`: whether the
    system held the clock down meanwhile. Left out: the system does not show it.
    """

    source: str
    duration_s: float
    peak_steps_per_s: float
    sustained_steps_per_s: float
    drop_after_s: float | None = None
    heat_sensor: str = ""
    start_celsius: float | None = None
    end_celsius: float | None = None
    start_hz: float | None = None
    end_hz: float | None = None
    is_throttled: bool | None = None

    def __post_init__(self) -> None:
        if not LEAST_SHARE * self.peak_steps_per_s <= self.sustained_steps_per_s:
            raise ValueError(
                f"sustained_steps_per_s {self.sustained_steps_per_s:g} is less than "
                f"{LEAST_SHARE:.0%} of peak_steps_per_s {self.peak_steps_per_s:g}"
            )

    @property
    def share(self) -> float:
        """The share of the short rate that lasts, at most 1."""
        return min(1.0, self.sustained_steps_per_s / self.peak_steps_per_s)
