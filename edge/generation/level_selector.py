"""The controller at the wheel of one generation: its state, its levels, what it decided.

Without a deadline there is nothing to decide and the level stays. With one, the first rows of the
prompt are encoded at every level that may be used, which tells what a row costs on each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from codec.ladder import Ladder
from edge.generation.report import StepTrace
from optimizer.policy.level_control import Controller, ControlState, Rung
from optimizer.policy.link_estimate import LinkEstimate, observe

# Rows that are encoded at every level to learn its size.
SAMPLE_ROWS: Final = 2


class LevelSelector:
    """Which level to encode at, and when to give up.

    levels: those it may use, best first; it begins with the first one. deadline_s: the longest
    that a decode step should take; None: never change anything.
    """

    def __init__(
        self, *, ladder: Ladder, levels: Sequence[str], deadline_s: float | None = None
    ) -> None:
        self._ladder = ladder
        self._levels = tuple(levels)
        self._deadline_s = deadline_s
        self._controller: Controller | None = None
        self._state: ControlState | None = None
        self._link = LinkEstimate()  # what the prefill shows

    @property
    def level(self) -> str:
        """The level of the next frame."""
        return self._state.level if self._state is not None else self._levels[0]

    @property
    def max_drafts(self) -> int | None:
        """Most drafts that the next step may carry; None: no limit."""
        return None if self._state is None else self._state.max_drafts

    @property
    def stall_s(self) -> float | None:
        """How long a step may stay unanswered; None: as long as the patience lasts."""
        return None if self._controller is None else self._controller.stall_s

    @property
    def gave_up(self) -> str | None:
        """Why the generation should end now, if it should."""
        return self._state.reason if self._state is not None and self._state.stop else None

    def weigh(self, rows: npt.NDArray[np.float32], token_ids: npt.NDArray[np.int64]) -> None:
        """Learn the levels' sizes from the last of `rows` [T, D]; does its work once."""
        if self._deadline_s is None or self._controller is not None:
            return
        samples = [
            (rows[at : at + 1], token_ids[at : at + 1])
            for at in range(max(len(rows) - SAMPLE_ROWS, 0), len(rows))
        ]
        self._controller = Controller(
            deadline_s=self._deadline_s,
            rungs=[
                Rung(
                    name=level,
                    bytes_per_row=float(
                        np.mean([len(self._ladder.encode(level, *sample)) for sample in samples])
                    ),
                )
                for level in self._levels
            ],
        )

    @property
    def seconds_per_byte(self) -> float:
        """Of the uplink, as the prefill shows it; 0 while nothing is known."""
        return self._link.seconds_per_byte

    def crossed(self, num_bytes: int, wire_s: float) -> None:
        """A prefill message that had the link to itself: says something of its rate."""
        self._link = observe(self._link, num_bytes, wire_s)

    def after(self, step: StepTrace, step_s: float, *, alone: bool) -> str:
        """Take one answered decode step; returns what was decided because of it, or ''.

        step_s: from the front's start to the answer's arrival.
        """
        if self._controller is None:
            return ""
        self._state = self._controller.after(
            self._state or self._controller.begin(self._link),
            step_s=step_s,
            wire_s=max(step_s - step.edge_s - step.cloud_s, 0.0),
            uplink_bytes=step.uplink_bytes,
            alone=alone,
        )
        return self._state.reason
