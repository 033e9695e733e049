"""Whether the tokens of an answer may leave both caches, and on what terms they do."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from edge.device.front import NO_POSITIONS
from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from edge.generation.room import KeepingFront, RoomMaker
from optimizer.artifacts.plan import Plan
from optimizer.policy.kv.registry import kv_policy
from protos.messages import Open


class Leaving(NamedTuple):
    """Tokens leave the caches of an answer: what makes room, how far positions reach, and whether
    the server has to say how surprising tokens are."""

    room: RoomMaker
    max_positions: int
    entropies: bool

    def announced(self, request: Open) -> Open:
        """`request`, for such an answer. The cloud's drafters, and frames that refer to rows, take
        positions for places."""
        return replace(
            request,
            max_positions=self.max_positions,
            entropies=self.entropies,
            draft_ids=0,
            recall=False,
        )


def context_capacity(request: CompletionRequest, plan: Plan) -> int:
    """Most tokens that stay cached."""
    return request.context_tokens or plan.max_tokens


def check_leaving(request: CompletionRequest, plan: Plan) -> None:
    """InputError where tokens cannot leave the caches as the request's context has them leave."""
    policy, asked = kv_policy(request.context), request.context_tokens
    if asked is not None and asked > plan.max_tokens:
        raise InputError(f"{asked} context tokens: the plan's cache holds {plan.max_tokens}")
    if not policy.in_place:
        return
    split = plan.partition.split if request.split is None else request.split
    reason = ""
    if plan.edge_is_whole:
        reason = "this plan has no server"
    elif plan.model.geometry.sliding_window is not None:
        reason = "not for a model with sliding windows"
    elif not plan.max_positions:
        reason = NO_POSITIONS
    elif split not in plan.splits or request.prefer == "cloud":
        reason = "the device has to run layers (not --split 0 or --prefer cloud)"
    if reason:
        raise InputError(f"context {policy.name}: {reason}; or take shift")


def check_outgrowing(request: CompletionRequest, *, total: int, capacity: int) -> None:
    """InputError for what needs all of `total` tokens where `capacity` are cached."""
    needs_all = request.sampling.prompt_logprobs is not None
    if kv_policy(request.context).evicts:
        needs_all = needs_all or request.sampling.grammar is not None
    if needs_all:
        raise InputError(
            f"prompt and answer of {total} tokens may outgrow the plan's {capacity}, and a grammar "
            "and the prompt's log-probabilities need all of them: ask for fewer new tokens"
        )


def leaving_of(
    request: CompletionRequest, plan: Plan, front: KeepingFront, *, max_positions: int
) -> Leaving:
    """The terms of one answer of `max_positions` tokens, prompt and output together."""
    policy = kv_policy(request.context)
    room = RoomMaker(policy, capacity=context_capacity(request, plan), front=front)
    return Leaving(room, max_positions, policy.needs_scores)
