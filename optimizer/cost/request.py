"""One request end to end over one deployment: time to the first token, and time between tokens.

The formulas are `round_trip.py`'s, the prompt is `prompt.py`'s, the parts are the other cost
models'. With drafting a round carries the last token and k guesses and brings home
`tokens_per_round` of them, so the time between tokens is the round's over that number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from hwprofiles.profiles.errors import ErrorKind
from optimizer.artifacts.prediction import PredictedRange
from optimizer.cost.cloud import lone_step_s, sample_s
from optimizer.cost.codec import answer_bytes, decode_s, encode_s, frame_bytes
from optimizer.cost.edge import answer_step_s, front_step, middle_row
from optimizer.cost.flight import NO_FLIGHT, Flight, flight_behind
from optimizer.cost.prompt import cloud_prefill_s, prompt_bytes, weighed_prefill
from optimizer.cost.round_trip import (
    OPEN_ROUND_TRIPS,
    RequestParts,
    between_tokens_s,
    cloud_share_s,
    opening_s,
    queue_s,
    round_over,
    round_terms,
)
from optimizer.cost.setting import RequestSetting
from optimizer.cost.uncertainty import Terms, term_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedRound:
    """How a round guesses: `num_drafts` guesses that take `draft_s` to make, after which a round
    brings `tokens_per_round` tokens on average (1: none was right).

    reach_ahead: of the guesses behind it, the chances that each and all before it are right. They
    go in frames of their own where the link leaves time (`flight.py`).
    """

    num_drafts: int
    tokens_per_round: float
    draft_s: float = 0.0
    reach_ahead: tuple[float, ...] = ()


NO_DRAFTS: Final = DraftedRound(num_drafts=0, tokens_per_round=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTime:
    """A request's prediction. `open_s`: connecting; `prefill_s`: the rest of `ttft_s`.

    `round_parts` is one decoding round in the middle of the answer; `tbt_s` is its total over the
    tokens it brings, `tokens_per_round`, frames ahead of its answer included. `ttft_terms`,
    `tbt_terms`: what the two depend on, for `time_ranges`. `edge_s_per_token`: the device computes.
    `ahead_s`: what a round takes beyond `round_parts` for the tokens of frames ahead.
    """

    ttft_s: float
    open_s: float
    prefill_s: float
    round_parts: RequestParts
    tbt_s: float
    total_s: float
    uplink_bytes: float
    uplink_bytes_per_token: float
    cloud_s: float
    cloud_s_per_token: float
    ttft_terms: Terms
    tbt_terms: Terms
    edge_s_per_token: float
    tokens_per_round: float
    ahead_s: float


class TimeRanges(NamedTuple):
    """Quantiles of the time to the first token and of the time between tokens."""

    ttft: PredictedRange
    tbt: PredictedRange


def time_ranges(setting: RequestSetting, time: RequestTime, *, batch: int = 1) -> TimeRanges:
    """How sure a request's prediction is, by the errors of both profiles and of the link."""
    found = []
    kinds: tuple[tuple[ErrorKind, float, Terms], ...] = (
        ("many_rows", time.ttft_s, time.ttft_terms),
        ("one_row", time.tbt_s, time.tbt_terms),
    )
    for kind, seconds, terms in kinds:
        errors = term_errors(setting.edge, setting.cloud, setting.link, kind=kind, batch=batch)
        found.append(errors.range_of(terms, seconds))
    return TimeRanges(*found)


def expected_tokens(acceptance: float, num_drafts: int) -> float:
    """Mean tokens of a round whose guesses are each right with probability a, independently:
    (1 - a^(k+1)) / (1 - a). Source: Leviathan et al. 2023, arXiv:2211.17192, eq. (1)."""
    if acceptance >= 1:
        return num_drafts + 1.0
    return (1 - acceptance ** (num_drafts + 1)) / (1 - acceptance)


def middle_position(prompt_tokens: int, new_tokens: int) -> int:
    """Tokens cached before the round in the middle of the answer, which stands for all rounds:
    step time is linear in the position."""
    return prompt_tokens + max(new_tokens - 1, 0) // 2


def round_parts(
    setting: RequestSetting,
    *,
    position: int,
    num_rows: int = 1,
    num_logits: int | None = None,
    batch: int = 1,
    num_answers: float = 1.0,
) -> RequestParts:
    """One round trip of `num_rows` rows with `position` tokens cached before them.

    `batch` sessions like this one share the server's steps. `num_logits` (all rows unless given)
    rows go through the head; `num_answers` tokens come back. Infinite over a dead link. The front
    makes the rows one by one (`edge.generation.draft_frames`), the server runs them together.
    """
    geometry, hidden = setting.geometry, setting.geometry.hidden_size
    step = front_step(
        setting.edge,
        geometry,
        split=setting.partition.split,
        weight_bits=setting.partition.front_bits,
        kv_bits=setting.kv_bits,
        num_rows=1,
        position=middle_row(position, num_rows),
        exact=setting.exact_front,
        layer_bits=setting.front_layer_bits,
        reading_s=setting.reading_s,
    )
    rows_s = num_rows * step.total_s
    front_s = answer_step_s(setting.edge, rows_s, waits=not setting.is_whole)
    if setting.is_whole:
        return RequestParts(
            front_s=front_s, sample_s=sample_s(setting.edge, geometry, num_logits=1)
        )
    logits = num_rows if num_logits is None else num_logits
    shared_s = setting.back.shared_step_s(
        num_rows=num_rows, position=position, num_logits=logits, batch=batch
    )
    back_s = float(lone_step_s(setting.cloud, shared_s, batch))
    return round_over(
        setting.link,
        front_s=front_s,
        encode_s=encode_s(setting.level, hidden_size=hidden, num_rows=num_rows),
        num_bytes=frame_bytes(setting.level, hidden_size=hidden, num_rows=num_rows),
        queue_s=queue_s(back_s, batch),
        decode_s=decode_s(setting.level, hidden_size=hidden, num_rows=num_rows),
        back_s=back_s,
        sample_s=sample_s(setting.cloud, geometry, num_logits=logits),
        num_answer_bytes=answer_bytes(num_answers),
        stack_s=setting.stack_s,
    )


def predict_request(
    setting: RequestSetting,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch: int = 1,
    drafting: DraftedRound = NO_DRAFTS,
    open_round_trips: float = OPEN_ROUND_TRIPS,
) -> RequestTime:
    """TTFT, TBT and what they are made of, for one request of `prompt_tokens` and `new_tokens`.

    `open_round_trips` are spent before the first chunk leaves: OPEN_ROUND_TRIPS in a client's later
    requests, NEW_CONNECTION_ROUND_TRIPS in its first (one fewer without TLS); none when the edge
    holds the whole model. Meanwhile the front computes chunks.
    """
    whole = setting.is_whole
    if whole:
        drafting = NO_DRAFTS
    opened = (
        0.0
        if whole
        else opening_s(setting.link, round_trips=open_round_trips, stack_s=setting.stack_s)
    )
    ttft, ttft_terms = weighed_prefill(
        setting, num_tokens=prompt_tokens, batch=batch, connected_s=opened
    )
    rows, tokens_per_round = 1 + drafting.num_drafts, drafting.tokens_per_round
    parts = round_parts(
        setting,
        position=middle_position(prompt_tokens, new_tokens),
        num_rows=rows,
        batch=batch,
        num_answers=tokens_per_round,
    )
    flight = _flight(setting, parts, drafting)
    ahead = float(flight.tokens)
    tokens_per_round += ahead
    beside_s = drafting.draft_s + parts.beside_layers_s + flight.seconds
    tbt = float(between_tokens_s(parts.layers_s, beside_s, tokens_per_round))
    rounds = max(new_tokens - 1, 0) / tokens_per_round
    frame = frame_bytes(setting.level, hidden_size=setting.geometry.hidden_size, num_rows=rows)
    round_bytes = frame * (1 + (ahead + float(flight.wasted_rows)) / rows)
    cloud_s = 0.0 if whole else float(cloud_share_s(parts.cloud_s, batch, 1.0))
    cloud_s *= 1 + ahead / rows
    terms = round_terms(
        parts,
        setting.link,
        stack_s=setting.stack_s,
        draft_s=drafting.draft_s,
        is_whole=whole,
    ).plus(flight.terms)
    return RequestTime(
        ttft_s=ttft,
        open_s=opened,
        prefill_s=ttft - opened,
        round_parts=parts,
        tbt_s=tbt,
        total_s=ttft + max(new_tokens - 1, 0) * tbt,
        uplink_bytes=0.0
        if whole
        else prompt_bytes(setting, num_tokens=prompt_tokens, batch=batch) + rounds * round_bytes,
        uplink_bytes_per_token=0.0 if whole else round_bytes / tokens_per_round,
        cloud_s=0.0
        if whole
        else cloud_prefill_s(setting, num_tokens=prompt_tokens, batch=batch) + rounds * cloud_s,
        cloud_s_per_token=cloud_s / tokens_per_round,
        ttft_terms=ttft_terms,
        tbt_terms=terms.over(tokens_per_round),
        edge_s_per_token=float(terms.edge + flight.hidden_s) / tokens_per_round,
        tokens_per_round=tokens_per_round,
        ahead_s=float(flight.seconds),
    )


def _flight(setting: RequestSetting, parts: RequestParts, drafting: DraftedRound) -> Flight:
    """What follows a round, as numbers."""
    if not drafting.reach_ahead:
        return NO_FLIGHT
    found = flight_behind(
        parts,
        setting.link,
        rows=1 + drafting.num_drafts,
        reach=(drafting.reach_ahead,),
        draft_s=drafting.draft_s,
        stack_s=setting.stack_s,
    )
    terms = Terms(*(float(np.asarray(term).item()) for term in found.terms))
    numbers = {
        name: float(np.asarray(value).item())
        for name, value in found._asdict().items()
        if name != "terms"
    }
    return Flight(terms=terms, **numbers)
