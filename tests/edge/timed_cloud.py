"""A cloud that answers with a given text over a given link, on a clock that only work moves.

For drafting: how many tokens a round trip brings, and when they come, without any model. Frames go
up one after another at the link's rate and arrive half a round trip later. The cloud runs them in
turn, one step for each, and answers void ones without a step. It fails on a hole in its cache, on
other tokens than the text's, and on rows that were computed behind other tokens.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from codec.ladder import Ladder
from edge.draft.base import Drafter
from edge.errors import LostError
from edge.generation.drafting import DraftSelector
from edge.net.route import Route
from edge.net.transport import Received
from edge.step_trace import StepTrace
from optimizer.policy.retry import Clock
from protos.messages import CloudMessage, Frame, Open, Opened, Result, Timings
from tests.edge.fakes import WIDTH, FakeFront, next_hash
from tests.edge.generation.remote import ManualTime, generation

FRAME_BYTES = 40
LOSSLESS = Ladder.lossless(WIDTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSetting:
    """What the parts of a round take. Seconds, bytes, bytes per second."""

    edge_row_s: float = 2e-3
    cloud_step_s: float = 4e-3
    cloud_row_s: float = 0.5e-3
    rtt_s: float = 0.05
    up_bytes_per_s: float = 2.5e6
    row_bytes: int = 200


class Replayed(NamedTuple):
    """One answer: its tokens, when each came in seconds, and the trace of every answered frame."""

    token_ids: list[int]
    times_s: list[float]
    steps: list[StepTrace]

    @property
    def seconds(self) -> float:
        """From the first token to the last."""
        return self.times_s[-1] - self.times_s[0]

    @property
    def round_trips(self) -> int:
        """Frames of the answer that waited for the token before them."""
        return sum(step.phase == "decode" and not step.ahead for step in self.steps)


def replayed(
    text: Sequence[int], num_prompt: int, drafter: Drafter | None, setting: RoundSetting
) -> Replayed:
    """The product's generation loop over this text, prompt and answer. drafter: None, for none."""
    time = ManualTime()
    drafting = None
    if drafter is not None:
        drafting = DraftSelector(drafter, clock=lambda: time.now_s)
    made = generation(
        [TimedCloud(text, time, setting)],  # type: ignore[list-item]
        Clock(now=lambda: time.now_s, sleep=time.sleep),
        front=_TimedFront(time, setting.edge_row_s),
        drafting=drafting,
        max_tokens=len(text) + 1,
    )
    out = Replayed([], [], [])
    for new in made.tokens(list(text[:num_prompt]), out.steps.append):
        out.token_ids.append(new.token_id)
        out.times_s.append(time.now_s)
        if len(out.token_ids) == len(text) - num_prompt:
            break
    return out


class _TimedFront(FakeFront):
    """Takes its time for single rows; prompts are not what is asked about."""

    def __init__(self, time: ManualTime, row_s: float) -> None:
        super().__init__()
        self._time = time
        self._row_s = row_s

    def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        if len(token_ids) == 1:
            self._time.now_s += self._row_s
        return super().forward(token_ids)


class TimedCloud:
    """A Transport. See the module's docstring."""

    address = "timed:1"

    def __init__(self, text: Sequence[int], time: ManualTime, setting: RoundSetting) -> None:
        self._text = tuple(text)
        self._time = time
        self._setting = setting

    def open(self, request: Open, timeout_s: float, route: Route | None = None) -> _TimedStream:
        del timeout_s, route
        return _TimedStream(request, self._text, self._time, self._setting)


class _TimedStream:
    def __init__(
        self, request: Open, text: tuple[int, ...], time: ManualTime, setting: RoundSetting
    ) -> None:
        self._text = text
        self._time = time
        self._setting = setting
        self._states = list(itertools.accumulate(text, next_hash, initial=0))[1:]
        self._inbox: deque[tuple[CloudMessage, float]] = deque()
        self._up_free_s = self._cloud_free_s = 0.0
        self._num_rows = 0
        self._last_token: int | None = None
        opened = Opened(session_id=request.session_id, max_frame_tokens=512)
        self._inbox.append((opened, self._time.now_s + setting.rtt_s))

    def send(self, frame: Frame) -> int:
        setting = self._setting
        num_bytes = FRAME_BYTES + len(frame.token_ids) * setting.row_bytes
        begun_s = max(self._time.now_s, self._up_free_s)
        self._up_free_s = begun_s + num_bytes / setting.up_bytes_per_s
        arrived_s = self._up_free_s + setting.rtt_s / 2
        step_s = max(self._cloud_free_s, arrived_s)
        tokens, runs = self._tokens(frame)
        queue_s, compute_s = 0.0, 0.0
        if runs:
            queue_s = step_s - arrived_s
            compute_s = setting.cloud_step_s + (len(frame.token_ids) - 1) * setting.cloud_row_s
        self._cloud_free_s = step_s + compute_s
        result = Result(
            sequence=frame.sequence,
            token_ids=tokens,
            num_tokens=self._num_rows,
            timings=Timings(
                queue_s=queue_s,
                compute_s=compute_s,
                batch_sessions=1,
                batch_rows=len(frame.token_ids),
            ),
        )
        self._inbox.append((result, self._cloud_free_s + setting.rtt_s / 2))
        return num_bytes

    def _tokens(self, frame: Frame) -> tuple[tuple[int, ...], bool]:
        """What a frame brings, and whether it runs."""
        at = frame.first_position
        if frame.ahead and (at != self._num_rows or frame.token_ids[0] != self._last_token):
            return (), False
        if at > self._num_rows:
            raise AssertionError("a hole in the cache")
        if frame.token_ids[0] != self._text[at]:
            raise AssertionError("another token than the text's")
        self._check_rows(frame)
        self._num_rows, self._last_token = at + len(frame.token_ids), None
        if not frame.want_token:
            return (), True
        first = self._num_rows - frame.num_drafts
        said: list[int] = []
        for index in range(frame.num_drafts + 1):
            place = first + index
            said.append(self._text[place] if place < len(self._text) else 0)
            if index == frame.num_drafts or frame.token_ids[place - at] != said[-1]:
                break
        self._num_rows, self._last_token = first + len(said) - 1, said[-1]
        return tuple(said), True

    def _check_rows(self, frame: Frame) -> None:
        """Rows of the text's tokens must be what the front makes of the text."""
        token_ids = np.asarray(frame.token_ids, dtype=np.int64)
        rows = LOSSLESS.decode(frame.hidden, num_rows=len(token_ids), token_ids=token_ids)
        states = self._states[frame.first_position :]
        text = self._text[frame.first_position :]
        for row, token_id, state, right in zip(rows, frame.token_ids, states, text, strict=False):
            if token_id != right:
                return
            if int(row[0]) != state:
                raise AssertionError("a row behind other tokens than the text's")

    def receive(self, timeout_s: float) -> Received:
        del timeout_s
        if not self._inbox:
            raise LostError("nothing to receive: the edge waits for what it did not ask")
        message, at_s = self._inbox.popleft()
        self._time.now_s = max(self._time.now_s, at_s)
        return Received(message, 30, at_s)

    def poll(self) -> Received | None:
        if self._inbox and self._inbox[0][1] <= self._time.now_s:
            return self.receive(0.0)
        return None

    def hang_up(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass
