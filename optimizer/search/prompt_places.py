"""Where each configuration's prompt is computed over one link, and when it is through the server.

Of the places that the problem allows, a configuration takes the one whose prompt is through first.
The place "both" sends as many ids as the policy says (`optimizer.policy.prefill_place`), from what
each stage costs a token of this prompt (`optimizer.cost.prompt.prefill_costs`, over arrays here).
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from hwprofiles.profiles.rates import Floats, Quantity
from optimizer.artifacts.prefill import PREFILL_PLACES, PrefillPlace
from optimizer.cost.link import LinkPoint, transfer_s
from optimizer.cost.round_trip import PromptChunks, prompt_stages_s, stage_terms
from optimizer.cost.uncertainty import TermErrors, Terms
from optimizer.policy.prefill_place import PrefillCosts, best_num_ids
from optimizer.search.link_independent import LinkIndependent, PlacedPrompts

MOST_KEPT: Final = 4
Weigh: TypeAlias = TermErrors | None
_SPLITS_OF_FIVE = (-1, 1, 1, 1, 1)  # [S] to [S, 1, 1, 1, 1]


def placed_prompts(
    fixed: LinkIndependent,
    link: LinkPoint,
    *,
    connected_s: Quantity,
    weigh: Weigh = None,
) -> PlacedPrompts:
    """Every configuration's prompt at its best place. connected_s: when the first frame may leave,
    [S, 1, 1, 1, 1]. weigh: say what the seconds depend on by these errors, which takes longer. The
    last few answers are kept: many questions differ in the round trip or in limits alone, which
    change nothing here."""
    key = (link.up_bytes_per_s, np.asarray(connected_s).tobytes(), weigh)
    if key not in fixed.placed:
        if len(fixed.placed) >= MOST_KEPT:
            fixed.placed.clear()
        fixed.placed[key] = _placed(fixed, link, connected_s, weigh)
    return fixed.placed[key]


def _placed(
    fixed: LinkIndependent, link: LinkPoint, connected_s: Quantity, weigh: Weigh
) -> PlacedPrompts:
    found = [
        _best_place(fixed, link, index, connected_s, weigh) for index in range(len(fixed.prompts))
    ]
    stages = np.stack([one.stages for one in found], axis=-1)
    places = np.stack([one.places for one in found], axis=-1)
    terms = None if weigh is None else Terms(*stages[1:])
    return PlacedPrompts(stages[0], places, terms)


class _Placed(NamedTuple):
    """Seconds, and what they depend on where that was asked for, [1 or 1 + terms, S, F, B, K, C];
    and the places, [S, F, B, K, C]."""

    stages: Floats
    places: npt.NDArray[np.int64]


def _best_place(
    fixed: LinkIndependent,
    link: LinkPoint,
    index: int,
    connected_s: Quantity,
    weigh: Weigh,
) -> _Placed:
    """At chunk size number `index`."""
    on_edge = _stages(fixed.prompts[index], link, connected_s, weigh)
    best, places = on_edge, np.zeros(on_edge.shape[1:], dtype=np.int64)
    space = fixed.problem.space
    is_split = [0 < split < fixed.problem.geometry.num_layers for split in space.splits]
    has_choice = np.array(is_split).reshape(_SPLITS_OF_FIVE)
    is_first = True
    for place in fixed.problem.prefill:
        stages = on_edge
        if place != "edge":
            stages = _with_ids(fixed, link, index, place, connected_s, on_edge.shape, weigh)
        taken = has_choice & (is_first | (stages[0] < best[0]))
        best = np.where(taken, stages, best)
        places = np.where(taken, PREFILL_PLACES.index(place), places)
        is_first = False
    return _Placed(best, places)


def _stages(chunks: PromptChunks, link: LinkPoint, connected_s: Quantity, weigh: Weigh) -> Floats:
    """Seconds until the last layer and, if asked, their terms, on an axis of their own in front."""
    seconds = prompt_stages_s(chunks, link, connected_s=connected_s)
    if weigh is None:
        return seconds[None]
    terms = stage_terms(chunks, link, weigh, connected_s=connected_s)
    return np.stack([seconds, *(np.broadcast_to(term, seconds.shape) for term in terms)])


def _with_ids(
    fixed: LinkIndependent,
    link: LinkPoint,
    index: int,
    place: PrefillPlace,
    connected_s: Quantity,
    shape: tuple[int, ...],
    weigh: Weigh,
) -> Floats:
    """The prompt at one place other than the edge, as `_Placed.stages` has it."""
    prompt = fixed.problem.limits.prompt_tokens
    if place == "cloud":
        chunks = fixed.prompt_with_ids(index, prompt)
        found = _stages(chunks, link, connected_s, weigh)
        return np.broadcast_to(found, shape)
    wanted = np.broadcast_to(best_num_ids(prompt, _costs(fixed, link, index)), shape[1:])
    connected = np.broadcast_to(np.asarray(connected_s, dtype=np.float64), shape[1:])
    out = np.empty(shape)
    for num_ids in np.unique(wanted):
        cells = wanted == num_ids
        chunks = fixed.prompts[index]
        if num_ids:
            chunks = fixed.prompt_with_ids(index, int(num_ids))
        some = PromptChunks(
            edge_s=_of(chunks.edge_s, cells),
            cloud_s=_of(chunks.cloud_s, cells),
            frame_bytes=_of(chunks.frame_bytes, cells),
        )
        out[:, cells] = _stages(some, link, connected[cells], weigh)
    return out


def _of(stage: Floats, cells: npt.NDArray[np.bool_]) -> Floats:
    """The chunks of some cells, [M, N]."""
    return np.asarray(np.broadcast_to(stage, (*cells.shape, stage.shape[-1]))[cells])


def _costs(fixed: LinkIndependent, link: LinkPoint, index: int) -> PrefillCosts:
    """`optimizer.cost.prompt.prefill_costs` of every configuration."""
    prompt = fixed.problem.limits.prompt_tokens
    rows, ids = fixed.prompts[index], fixed.prompt_with_ids(index, prompt)
    back_s = rows.cloud_s.sum(axis=-1) / prompt
    return PrefillCosts(
        round_trip_s=0.0,  # the same for every number of ids
        edge_s=rows.edge_s.sum(axis=-1) / prompt,
        link_s=np.asarray(transfer_s(rows.frame_bytes.sum(axis=-1), link.up_bytes_per_s)) / prompt,
        below_s=ids.cloud_s.sum(axis=-1) / prompt - back_s,
        back_s=back_s,
        chunk_tokens=fixed.problem.space.chunks[index],
    )
