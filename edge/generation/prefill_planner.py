"""How many of a prompt's first tokens go as ids: what this device measured, handed to the policy.

The policy is `optimizer.policy.prefill_place`. One planner serves all generations of a device, so
that a prompt profits from those before it.
"""

from __future__ import annotations

import threading
from typing import Final

from edge.generation.level_selector import LevelSelector
from edge.generation.step_observer import AnsweredStep
from edge.step_trace import StepTrace
from optimizer.artifacts.prefill import PrefillPlace
from optimizer.policy.prefill_place import PrefillCosts, num_ids
from protos.wire import MAX_TOKENS

_NEWEST: Final = 0.5  # weight of the newest measurement in a mean


class PrefillPlanner:
    """See the module's docstring. split, num_layers: of the model. chunk_tokens: of a frame."""

    def __init__(self, *, split: int, num_layers: int, chunk_tokens: int) -> None:
        self._share_below = split / num_layers
        self._chunk_tokens = chunk_tokens
        self._lock = threading.Lock()
        self._edge_s: float | None = None
        self._link_s: float | None = None
        self._layers_s: float | None = None  # of all layers in the cloud, a token
        self._round_trip_s: float | None = None

    def num_ids(self, place: PrefillPlace, num_tokens: int) -> int:
        """How many first tokens of a prompt of `num_tokens` go as ids."""
        with self._lock:
            return num_ids(place, num_tokens, self._costs())

    def computed(self, num_rows: int, seconds: float) -> None:
        """The front computed rows of a prompt."""
        with self._lock:
            self._edge_s = _mixed(self._edge_s, seconds / num_rows)

    def learn(self, trace: StepTrace, *, is_prefill: bool, seconds_per_byte: float) -> None:
        """One answered frame. seconds_per_byte: of the uplink; 0: unknown."""
        if trace.is_kv:  # the cloud computed nothing
            return
        with self._lock:
            if not is_prefill:
                if trace.num_rows == 1:
                    self._round_trip_s = _mixed(self._round_trip_s, trace.wire_s)
                return
            share = 1.0 if trace.hidden_bytes == 0 else 1.0 - self._share_below
            if share > 0:
                self._layers_s = _mixed(
                    self._layers_s, trace.cloud_compute_s / trace.num_rows / share
                )
            if trace.hidden_bytes:
                self._edge_s = _mixed(self._edge_s, trace.edge_s / trace.num_rows)
                if seconds_per_byte:
                    self._link_s = seconds_per_byte * trace.uplink_bytes / trace.num_rows

    def _costs(self) -> PrefillCosts | None:
        if self._edge_s is None or self._layers_s is None:
            return None
        return PrefillCosts(
            round_trip_s=self._round_trip_s or 0.0,
            edge_s=self._edge_s,
            link_s=self._link_s or 0.0,
            below_s=self._layers_s * self._share_below,
            back_s=self._layers_s * (1.0 - self._share_below),
            chunk_tokens=self._chunk_tokens,
        )


class PrefillChoice:
    """Which tokens of one generation go as ids. place: where the prompt is computed."""

    def __init__(self, planner: PrefillPlanner, place: PrefillPlace, *, split: int) -> None:
        self._planner = planner
        self._place = place
        self._split = split

    def num_ids(self, num_prompt_tokens: int) -> int:
        """How many first tokens. At split 0 all of the session: no layer runs on the device."""
        if self._split == 0:
            return MAX_TOKENS
        return self._planner.num_ids(self._place, num_prompt_tokens)

    def fills_front(self, *, with_drafts: bool) -> bool:
        """Whether the front has to compute what went as ids. At split 0 only a drafter needs it."""
        return self._split > 0 or with_drafts

    def computed(self, num_rows: int, seconds: float) -> None:
        """See PrefillPlanner."""
        self._planner.computed(num_rows, seconds)

    def watcher(self, selector: LevelSelector) -> PrefillWatcher:
        """What tells the planner of the generation's steps; `selector` knows its link."""
        return PrefillWatcher(self._planner, selector)


class PrefillWatcher:
    """A StepWatcher that tells the planner."""

    def __init__(self, planner: PrefillPlanner, selector: LevelSelector) -> None:
        self._planner = planner
        self._selector = selector

    def answered(self, step: AnsweredStep) -> str:
        """See StepWatcher."""
        self._planner.learn(
            step.trace,
            is_prefill=step.is_prefill,
            seconds_per_byte=self._selector.seconds_per_byte,
        )
        return ""


def _mixed(before: float | None, now: float) -> float:
    return now if before is None else before + _NEWEST * (now - before)
