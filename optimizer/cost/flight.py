"""Rounds in flight: what comes behind a round's first frame, and what that takes.

While the answer to a frame is outstanding, the device makes the rows of further guesses and sends
them in frames of their own (`edge.generation.draft_frames`). Every answer that is right lets the
flight go on; a wrong guess ends it, and the device begins again behind the token that is known
then. So with a round of T seconds and n frames under way, further tokens come in steps of

    pace = max(device's row, row on the uplink, server's step for it, T / (1 + n))

and the flight takes T + J pace, with J the expected number of tokens that came ahead. Frames on
wrong guesses cost the server nothing, but the device and the uplink a row each. Alternatives are
not modelled: tokens that they bring are among the measured ones. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from hwprofiles.profiles.rates import Floats, Quantity
from optimizer.cost.link import LinkPoint
from optimizer.cost.round_trip import RequestParts, round_terms
from optimizer.cost.uncertainty import Terms
from optimizer.policy.frames_ahead import MAX_IN_FLIGHT, least_chance, rows_in_time


class Flight(NamedTuple):
    """What follows a round's first frame, where frames go ahead: tokens that come so, seconds that
    this takes, and what these depend on. wasted_rows: sent on wrong guesses. hidden_s: seconds of
    the device for rows that it makes while it would wait. All 0 where no frame goes ahead."""

    tokens: Quantity
    seconds: Quantity
    terms: Terms
    wasted_rows: Quantity
    hidden_s: Quantity


NO_FLIGHT: Final = Flight(0.0, 0.0, Terms(), 0.0, 0.0)


def flight_behind(
    parts: RequestParts,
    link: LinkPoint,
    *,
    rows: Quantity,
    reach: Sequence[Sequence[float]],
    draft_s: Quantity,
    stack_s: float,
) -> Flight:
    """The flight behind a round of `parts`: its frame has `rows` rows and took `draft_s` to guess.

    reach: for every way to draft, the last axis of the arrays, the chance that guess i behind the
    first frame and all before it are right, which falls with i; () where none goes ahead.
    """
    edge_s = np.asarray(parts.front_s + parts.encode_s + draft_s)
    uplink_s = np.maximum(np.asarray(parts.up_s) - (link.rtt_s + stack_s) / 2, 0.0)
    cloud_s = np.asarray(parts.queue_s + parts.cloud_s)
    row_s = np.maximum(edge_s, uplink_s) / rows
    rtt_s = link.rtt_s + stack_s
    in_time = rows_in_time(rtt_s, row_s)
    likely = _count_above(reach, least_chance(rtt_s, row_s))
    ahead = np.minimum(np.minimum(in_time, likely), (MAX_IN_FLIGHT - 1) * np.asarray(rows))
    goes = ahead >= 1
    frames = ahead / rows
    total_s = parts.total_s + draft_s
    steps_s = np.stack(
        np.broadcast_arrays(edge_s, uplink_s, cloud_s, total_s / (1 + frames)), axis=0
    )
    slowest = steps_s.argmax(axis=0)
    tokens = np.where(goes, np.array([sum(chances) for chances in reach]), 0.0)
    steps = tokens / rows
    window = np.where(slowest == 3, steps / (1 + frames), 0.0)
    all_terms = round_terms(parts, link, stack_s=stack_s, draft_s=draft_s)
    terms = Terms(*(window * term for term in all_terms))
    terms = terms._replace(
        edge=terms.edge + np.where(slowest == 0, steps * edge_s, 0.0),
        transfer=terms.transfer + np.where(slowest == 1, steps * uplink_s, 0.0),
        cloud=terms.cloud + np.where(slowest == 2, steps * cloud_s, 0.0),
    )
    wasted = np.where(goes, ahead, 0.0)
    computed_s = (wasted + tokens) * edge_s / rows
    return Flight(
        tokens=tokens,
        seconds=steps * steps_s.max(axis=0),
        terms=terms,
        wasted_rows=wasted,
        hidden_s=np.maximum(computed_s - np.where(slowest == 0, steps * edge_s, 0.0), 0.0),
    )


def _count_above(reach: Sequence[Sequence[float]], least: Quantity) -> Floats:
    """How many of each way's chances are at least this; the last axis of `least` is the ways'."""
    each = np.broadcast_to(least, np.broadcast_shapes(np.shape(least), (len(reach),)))
    counts = [
        np.searchsorted(-np.asarray(chances), -each[..., way], side="right")
        for way, chances in enumerate(reach)
    ]
    return np.stack(counts, axis=-1).astype(np.float64)
