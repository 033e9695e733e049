"""Where the split should be while a front in segments runs: a pure rule over a few signs.

Towards the cloud, one split at a time, where the device runs short: of memory, of battery, or of
cooling. Towards the last split again, one at a time, once nothing has been short for a while; at
once where the server's answers wait longer in its queue than they take, since the layers that the
device has then cost the server nothing. A full cache is not asked here: it moves the split in any
case (`edge.generation.moving`).

Every move costs the prompt and the answer so far once more in the cloud, so moves keep a distance
in time. Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LOW_MEMORY: Final = 0.05  # share of the memory that is free, below which the device is short
LOW_BATTERY: Final = 0.15  # share of the charge that is left, off the mains
HOT: Final = 0.95  # of the temperature at which the system says that it is critical
BUSY: Final = 0.5  # share of a frame's time in the server that it waited there
DOWN_AFTER_S: Final = 5.0  # between two moves towards the cloud
UP_AFTER_S: Final = 60.0  # from the last move, or the last shortage, to one towards the edge


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What can be seen; None: it cannot.

    free_memory: share of the device's memory that is free. battery: share of the charge that is
    left, None on the mains. heat: the hottest sensor over its critical temperature, both in degrees
    Celsius. waited: share of the last frames' time in the server that they waited.
    """

    free_memory: float | None = None
    battery: float | None = None
    heat: float | None = None
    waited: float | None = None

    @property
    def shortage(self) -> str:
        """What the device is short of: "memory", "battery", "cooling", or nothing."""
        if self.free_memory is not None and self.free_memory < LOW_MEMORY:
            return "memory"
        if self.battery is not None and self.battery < LOW_BATTERY:
            return "battery"
        if self.heat is not None and self.heat > HOT:
            return "cooling"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitState:
    """The wished split, and since when. short_s: when the device was last short of something."""

    split: int
    moved_s: float = float("-inf")
    short_s: float = float("-inf")


def next_split(
    state: SplitState, splits: Sequence[int], signs: Signs, *, now_s: float
) -> SplitState:
    """The state after a look at `signs`. splits: rising, 0 not among them; now_s: seconds."""
    if signs.shortage:
        lower = [0, *(split for split in splits if split < state.split)][-1]
        if lower == state.split or now_s - state.moved_s < DOWN_AFTER_S:
            return SplitState(split=state.split, moved_s=state.moved_s, short_s=now_s)
        return SplitState(split=lower, moved_s=now_s, short_s=now_s)
    higher = next((split for split in splits if split > state.split), None)
    if higher is None:
        return state
    is_busy = signs.waited is not None and signs.waited > BUSY
    rest_s = DOWN_AFTER_S if is_busy else UP_AFTER_S
    if now_s - state.moved_s < rest_s or now_s - state.short_s < UP_AFTER_S:
        return state
    return SplitState(split=higher, moved_s=now_s, short_s=state.short_s)
