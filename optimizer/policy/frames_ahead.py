"""Which guesses are sent in frames of their own while an answer is outstanding.

A device that waits for an answer makes the rows of its guesses meanwhile. Each costs the time of a
row, and a round trip is saved where it is right. The device decides guess by guess with these
rules, and the planner predicts with them. Seconds, numbers or arrays: `rtt_s` is all of a round
trip that does not grow with the message; `row_s` is what a row sent ahead takes, on the device or
on its way up, whichever is slower. Ours.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hwprofiles.profiles.rates import Quantity

# A guess less likely to count than this is not sent ahead. The time would cost nothing, but energy
# and uplink would.
MIN_CHANCE_AHEAD: Final = 0.03
MAX_IN_FLIGHT: Final = 12  # frames; fewer where the server takes fewer
MIN_ROW_S: Final = 1e-6


def least_chance(rtt_s: Quantity, row_s: Quantity) -> Quantity:
    """The chance above which a frame is worth it: a right one saves a round trip, a wrong one may
    make the answer wait for a row."""
    return np.maximum(row_s / np.maximum(rtt_s + row_s, MIN_ROW_S), MIN_CHANCE_AHEAD)


def rows_in_time(rtt_s: Quantity, row_s: Quantity) -> Quantity:
    """How many rows can be sent ahead until the first answer is expected; none where an answer
    takes no longer than a row."""
    return np.where(np.asarray(rtt_s) > row_s, np.floor(rtt_s / np.maximum(row_s, MIN_ROW_S)), 0.0)
