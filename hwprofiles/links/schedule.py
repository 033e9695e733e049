"""Step functions of time, and the recorded link traces (CSV) that they are read from."""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median

from hwprofiles.errors import ProfileError
from hwprofiles.schema.utf8 import NotUtf8Error, utf8_text

BYTES_PER_S_PER_MBPS = 125_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A piecewise-constant, non-negative function of time that repeats after `period_s`.

    `values[k]` holds from `starts_s[k]` to `starts_s[k + 1]`, the last one until `period_s`, which
    may be infinite. As a rate in bytes/s, `integral(t)` is the number of bytes the link can have
    carried by t, and `when(x)` the moment at which it has carried x.
    """

    starts_s: tuple[float, ...]
    values: tuple[float, ...]
    period_s: float = math.inf
    _sums: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.starts_s or len(self.starts_s) != len(self.values) or self.starts_s[0] != 0:
            raise ValueError("steps need as many starts as values, the first start at 0")
        if any(a >= b for a, b in pairwise((*self.starts_s, self.period_s))):
            raise ValueError("step times must rise strictly, and end before the period does")
        if not all(0 <= v < math.inf for v in self.values):
            raise ValueError("step values must be finite and not negative")
        widths = (b - a for a, b in pairwise((*self.starts_s, self.period_s)))
        areas = (v * w if v else 0.0 for v, w in zip(self.values, widths, strict=True))
        object.__setattr__(self, "_sums", (0.0, *accumulate(areas)))

    @classmethod
    def constant(cls, value: float) -> Steps:
        """The same value for ever."""
        return cls(starts_s=(0.0,), values=(value,))

    def value(self, t_s: float) -> float:
        """The value that holds at t_s >= 0."""
        return self.values[bisect_right(self.starts_s, t_s % self.period_s) - 1]

    def integral(self, t_s: float) -> float:
        """The area under the function from 0 to t_s >= 0."""
        turns, rest_s = divmod(t_s, self.period_s)
        k = bisect_right(self.starts_s, rest_s) - 1
        whole = turns * self._sums[-1] if turns else 0.0
        return whole + self._sums[k] + self.values[k] * (rest_s - self.starts_s[k])

    def when(self, area: float) -> float:
        """The earliest t_s at which `integral(t_s)` is `area`; infinity if it never is."""
        if area <= 0:
            return 0.0
        per_turn = self._sums[-1]
        if per_turn == 0 or (self.period_s == math.inf and area > per_turn):
            return math.inf
        turns, rest = divmod(area, per_turn)
        if rest == 0:  # reached at the end of a turn, before any zeros that follow
            turns, rest = turns - 1, per_turn
        k = bisect_left(self._sums, rest) - 1
        start_s = turns * self.period_s if turns else 0.0
        return start_s + self.starts_s[k] + (rest - self._sums[k]) / self.values[k]

    def mean(self) -> float:
        """The mean over one period; of an endless function, its last value."""
        if self.period_s == math.inf:
            return self.values[-1]
        return self._sums[-1] / self.period_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTrace:
    """A recorded link: rates in bytes/s, and the round trip time where it was recorded.

    `up` is None when the recording has the downlink only. One value holds until the next row; the
    last row holds for the median step; then the trace repeats.
    """

    name: str
    down: Steps
    up: Steps | None
    rtt_s: Steps | None


def read_trace(path: str | Path) -> LinkTrace:
    """Read `t_s,down_mbps[,up_mbps][,ping_ms]`; other columns are ignored.

    Empty `ping_ms` cells keep the value before them (the first ones take the first recorded). Times
    count from the first row. Raises ProfileError naming file, line and column.
    """
    try:
        text = utf8_text(Path(path).read_bytes())
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
        columns = reader.fieldnames or []
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except (NotUtf8Error, csv.Error) as error:
        raise ProfileError(f"{path}: cannot be read: {error}") from error
    missing = [name for name in ("t_s", "down_mbps") if name not in columns]
    if missing or not rows:
        raise ProfileError(
            f"{path}: a trace needs the columns t_s and down_mbps (up_mbps and ping_ms are used "
            f"when there) and at least one row; found {', '.join(columns) or 'nothing'}"
        )

    def number(row: int, name: str) -> float:
        cell = rows[row][name]
        try:
            value = float(cell)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value < math.inf:
            raise ProfileError(
                f"{path}, line {row + 2}: '{name}' must be a number, not negative, not {cell!r}"
            )
        return value

    times = [number(i, "t_s") for i in range(len(rows))]
    for i, (a, b) in enumerate(pairwise(times)):
        if b <= a:
            raise ProfileError(f"{path}, line {i + 3}: 't_s' must rise, but {b} follows {a}")
    last_step_s = median(b - a for a, b in pairwise(times)) if len(times) > 1 else 1.0
    starts_s = tuple(t - times[0] for t in times)
    period_s = starts_s[-1] + last_step_s

    def steps(values: list[float], scale: float) -> Steps:
        return Steps(starts_s=starts_s, values=tuple(v * scale for v in values), period_s=period_s)

    def rates(name: str) -> Steps:
        return steps([number(i, name) for i in range(len(rows))], BYTES_PER_S_PER_MBPS)

    rtt_s = None
    recorded = [i for i, row in enumerate(rows) if row.get("ping_ms")]
    if recorded:
        pings = [number(i, "ping_ms") for i in recorded]
        held = [pings[max(0, bisect_right(recorded, i) - 1)] for i in range(len(rows))]
        rtt_s = steps(held, 1e-3)
    return LinkTrace(
        name=Path(path).stem,
        down=rates("down_mbps"),
        up=rates("up_mbps") if "up_mbps" in columns else None,
        rtt_s=rtt_s,
    )
