"""Where a prompt's rows are computed: a pure function of what each stage costs a token.

A server that holds every layer can compute a row from its token's id. The first n of P prompt
tokens then cross the link as ids, a few bytes each, and the cloud runs all layers on them. The
device computes all P rows either way, since its own cache needs them. It sends those from n on.

    cloud alone   rtt + P (below + back)
    first n ids   rtt + max(n (below + back) + (P - n) back, link end + one chunk in the cloud)
    link end      max(P edge, n edge + (P - n) link)   the rows leave as they are computed

`below` and `back` are the cloud's seconds a token in the layers below the split and from it on.
Source: ours.

Which place was taken may change tokens where the two sides hold different weights (a 4-bit front
and an 8-bit back, say). So nothing here is asked unless a plan or a user says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from optimizer.artifacts.prefill import PrefillPlace

Seconds = float | npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
GRAIN: Final = 16  # numbers of ids that are compared; kernels work in blocks of rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillCosts:
    """Seconds: of a round trip, and of one prompt token in each stage.

    edge_s: the front and the encoder. link_s: a row on the uplink. below_s, back_s: the cloud's
    layers below the split, and from the split on. chunk_tokens: rows of one frame. Each of the
    seconds may be an array of many deployments; they broadcast.
    """

    round_trip_s: Seconds
    edge_s: Seconds
    link_s: Seconds
    below_s: Seconds
    back_s: Seconds
    chunk_tokens: int


def ttft_s(costs: PrefillCosts, num_tokens: int, num_ids: int) -> Seconds:
    """Seconds to the first token when the first `num_ids` of `num_tokens` go as ids."""
    num_rows = num_tokens - num_ids
    cloud_s = num_ids * (costs.below_s + costs.back_s)
    if num_rows == 0:
        return costs.round_trip_s + cloud_s
    sent_s = np.maximum(num_tokens * costs.edge_s, num_ids * costs.edge_s + num_rows * costs.link_s)
    last_s = min(num_rows, costs.chunk_tokens) * costs.back_s
    return costs.round_trip_s + np.maximum(cloud_s + num_rows * costs.back_s, sent_s + last_s)


def num_ids(place: PrefillPlace, num_tokens: int, costs: PrefillCosts | None) -> int:
    """How many first tokens of a prompt go as ids, at most all `num_tokens` (at least 1).

    costs: None: nothing is known yet; "both" then means the cloud.
    """
    if place == "edge":
        return 0
    if place == "cloud" or costs is None:
        return num_tokens
    return int(best_num_ids(num_tokens, costs))


def best_num_ids(num_tokens: int, costs: PrefillCosts) -> Counts:
    """The number of ids with the least `ttft_s`, for every deployment of `costs`."""
    best_s = np.asarray(ttft_s(costs, num_tokens, num_tokens))
    best = np.full(best_s.shape, num_tokens, dtype=np.int64)
    # A single row may differ from the same row among others, so none is left alone.
    for count in reversed(range(0, num_tokens, GRAIN)):
        if num_tokens - count == 1:
            continue
        # As soon with fewer ids costs the cloud less.
        seconds = np.asarray(ttft_s(costs, num_tokens, count))
        is_better = seconds <= best_s
        best_s = np.where(is_better, seconds, best_s)
        best = np.where(is_better, count, best)
    return best
