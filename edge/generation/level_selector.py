"""Which compression level one generation uses: level control with its state and its ladder.

Without a deadline there is nothing to decide and the level stays. With one, the prompt's first rows
are encoded at every level that may be used; this tells what a row costs at each level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from codec.ladder import Ladder
from edge.generation.session import EdgeSession
from edge.generation.session_frames import SessionFrames
from edge.generation.step_observer import AnsweredStep
from optimizer.policy.level_control import Controller, ControlState, Rung
from optimizer.policy.link_estimate import LinkEstimate, observe

# Rows that are encoded at every level to learn its size.
SAMPLE_ROWS: Final = 2


class LevelSelector:
    """Encodes at the selected level, and says when to give up. A StepWatcher.

    levels: those it may use, best first; it begins with the first one. deadline_s: the longest
    that a decode step should take; None: never change anything. frames: predicts rows from the
    session's earlier ones; None: no frame refers to any.
    """

    def __init__(
        self,
        *,
        ladder: Ladder,
        levels: Sequence[str],
        deadline_s: float | None = None,
        frames: SessionFrames | None = None,
    ) -> None:
        self._ladder = ladder
        self._levels = tuple(levels)
        self._deadline_s = deadline_s
        self._frames = frames
        self._controller: Controller | None = None
        self._state: ControlState | None = None
        self._link = LinkEstimate()  # what the prefill shows

    @property
    def level(self) -> str:
        """The level of the next frame."""
        return self._state.level if self._state is not None else self._levels[0]

    @property
    def max_drafts(self) -> int | None:
        """The most drafts that the next step may carry; None: no limit."""
        return None if self._state is None else self._state.max_drafts

    @property
    def stall_s(self) -> float | None:
        """How long a step may stay unanswered; None: as long as the retry policy says."""
        return None if self._controller is None else self._controller.stall_s

    @property
    def gave_up(self) -> str | None:
        """Why the generation should end now; None: it should go on."""
        return self._state.reason if self._state is not None and self._state.stop else None

    @property
    def seconds_per_byte(self) -> float:
        """Of the uplink, as the prefill shows it; 0 while nothing is known."""
        return self._link.seconds_per_byte

    @property
    def prefix_key(self) -> str:
        """What frames of earlier prompts must have in common with this generation's."""
        return self.level if self._frames is None else f"{self.level}, recalled"

    def encode(
        self,
        rows: npt.NDArray[np.float32],
        token_ids: npt.NDArray[np.int64],
        session: EdgeSession,
        first_position: int,
    ) -> bytes:
        """The next frame of a session, rows [T, D] of tokens [T] from first_position on, at the
        level selected now."""
        if self._frames is None or not session.recalls:
            return self._ladder.encode(self.level, rows, token_ids)
        session.has_recalled = True
        return self._frames.encode(
            self.level,
            rows,
            token_ids,
            first_position=first_position,
            journal=session.journal,
        )

    def level_of(self, payload: bytes) -> str:
        """The level at which an encoded frame was really encoded."""
        return self._ladder.level_of(payload)

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

    def answered(self, step: AnsweredStep) -> str:
        """See StepWatcher: the prefill shows the link's rate, decode steps move the level.

        A frame that was sent ahead in vain brings no tokens and says nothing of the link.
        """
        trace = step.trace
        if step.is_prefill:
            if step.alone and trace.hidden_bytes:  # it had the link to itself, and filled it
                self._link = observe(self._link, trace.uplink_bytes, trace.wire_s)
            return ""
        if self._controller is None or not step.token_ids:
            return ""
        self._state = self._controller.after(
            self._state or self._controller.begin(self._link),
            step_s=step.step_s,
            wire_s=max(step.step_s - trace.edge_s - trace.cloud_s, 0.0),
            uplink_bytes=trace.uplink_bytes,
            alone=step.alone,
        )
        return self._state.reason
