"""Fronts with layers that are read from storage in every pass, as further choices of a problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from optimizer.cost.streaming import reading_s
from optimizer.search.edge_bytes import front_plan
from optimizer.search.problem import Problem

SHARES: Final = (0.25, 0.5, 0.75, 1.0)  # of the layers that can be streamed


def with_streaming(problem: Problem) -> Problem:
    """The problem with every front also in part on storage.

    The device streams as few layers as fit, so the shares need not be fine. PlanError where the
    edge's profile does not know how fast its storage is read.
    """
    space = problem.space
    streamed = tuple(
        replace(front, streamed_share=share) for front in space.fronts for share in SHARES
    )
    for front in streamed[-1:]:
        for split in space.splits[-1:]:
            reading_s(problem.edge, front_plan(problem, split, front))
    return replace(problem, space=replace(space, fronts=(*space.fronts, *streamed)))
