"""What a round costs and brings on this device and this link, learned from the rounds themselves.

Exponential means hold the edge's time a row and the drafter's time a guess. The link is a
LinkEstimate, which level control uses too. The cloud's time by rows is a least-squares fit over
recent frames. The rate is tokens over time between answers; one more draft competes with it.
"""

from __future__ import annotations

from typing import Final

from edge.step_trace import StepTrace
from optimizer.policy.draft_length import RoundTimes
from optimizer.policy.link_estimate import LinkEstimate, observe
from protos.sizes import ONE_ROW_OVERHEAD_BYTES

MEMORY: Final = 0.9  # weight of the past in every mean
# Before frames of different sizes have been seen: what a further row adds to a cloud step, as a
# share of it. Between 0.03 (weights dominate) and 1; the first drafted rounds correct it.
ROW_SHARE: Final = 0.1
MIN_RATE_S: Final = 1e-6


class FadingMean:
    """An exponential mean that begins with its first value."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value: float | None = None

    @property
    def value(self) -> float:
        """The mean; 0 before the first value."""
        return self._value or 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self._value = (
            value if self._value is None else MEMORY * self._value + (1.0 - MEMORY) * value
        )


class CloudTime:
    """Seconds of a frame in the cloud by its rows: a + b rows, fading least squares, b > 0.

    The prior of b is a share of the mean time, worth a few frames; it stands while all frames
    have the same size.
    """

    __slots__ = ("_rows", "_rows_2", "_rows_s", "_seconds", "_weight")

    def __init__(self) -> None:
        self._weight = self._rows = self._rows_2 = self._seconds = self._rows_s = 0.0

    def add(self, num_rows: int, seconds: float) -> None:
        """One more frame of `num_rows` rows."""
        for name, value in (
            ("_weight", 1.0),
            ("_rows", float(num_rows)),
            ("_rows_2", float(num_rows * num_rows)),
            ("_seconds", seconds),
            ("_rows_s", num_rows * seconds),
        ):
            setattr(self, name, MEMORY * getattr(self, name) + value)

    @property
    def row_s(self) -> float:
        """b: what a further row adds."""
        if not self._weight:
            return 0.0
        mean_rows, mean_s = self._rows / self._weight, self._seconds / self._weight
        spread = self._rows_2 - self._weight * mean_rows**2
        covariance = self._rows_s - self._weight * mean_rows * mean_s
        prior = ROW_SHARE * mean_s
        # The prior counts like four frames, one row away from the mean.
        return max((covariance + 4.0 * prior) / (spread + 4.0), 0.0)

    def step_s(self, num_rows: int = 1) -> float:
        """a + b rows, through the mean of what was seen."""
        if not self._weight:
            return 0.0
        mean_rows, mean_s = self._rows / self._weight, self._seconds / self._weight
        return max(mean_s + self.row_s * (num_rows - mean_rows), 0.1 * mean_s)


class RoundEstimator:
    """The estimates of one generation."""

    def __init__(self) -> None:
        self._edge_row = FadingMean()
        self._guess = FadingMean()
        self._row_bytes = FadingMean()
        self._cloud = CloudTime()
        self._link = LinkEstimate()
        self._tokens = FadingMean()
        self._seconds = FadingMean()
        self._answered_at_s: float | None = None

    @property
    def times(self) -> RoundTimes:
        """What a round takes, by its parts. All zero before the first answer."""
        return RoundTimes(
            edge_row_s=self._edge_row.value,
            guess_s=self._guess.value,
            rtt_s=self._link.rtt_s,
            up_bytes_per_s=self._link.up_bytes_per_s,
            frame_bytes=float(ONE_ROW_OVERHEAD_BYTES),
            row_bytes=self._row_bytes.value,
            cloud_step_s=self._cloud.step_s(),
            cloud_row_s=self._cloud.row_s,
        )

    @property
    def tokens_per_s(self) -> float:
        """The best rate known: the measured one, or that of rounds without drafts."""
        measured = self._tokens.value / max(self._seconds.value, MIN_RATE_S)
        plain = 1.0 / max(self.times.first_s, MIN_RATE_S)
        return max(measured, plain) if self._seconds.value else plain

    @property
    def is_known(self) -> bool:
        """Whether a decode step has been measured."""
        return self._cloud.step_s() > 0.0

    def guessed(self, seconds: float) -> None:
        """The drafter took this long for one guess."""
        self._guess.add(seconds)

    def answered(self, step: StepTrace, at_s: float, *, alone: bool, guess_s: float) -> None:
        """One decode frame was answered with tokens at `at_s`.

        alone: no other frame was on its way. guess_s: the drafter's part of its time on the edge.
        """
        self._edge_row.add(max(step.edge_s - guess_s, 0.0) / step.num_rows)
        self._row_bytes.add(step.hidden_bytes / step.num_rows)
        # A frame ahead waits for its own session's frame before it, which is no queue.
        queue_s = step.cloud_queue_s if step.ahead else 0.0
        self._cloud.add(step.num_rows, step.cloud_s - queue_s)
        if alone:
            self._link = observe(self._link, step.uplink_bytes, step.wire_s)
        if self._answered_at_s is not None:
            self._tokens.add(float(step.num_new_tokens))
            self._seconds.add(at_s - self._answered_at_s)
        self._answered_at_s = at_s
