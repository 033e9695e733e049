"""One answer of a plan that has the whole model on the edge: no link, no server, a closed form."""

from __future__ import annotations

from optimizer.simulate.record import Record, RoundMoments
from optimizer.simulate.times import FrontTimes
from optimizer.simulate.workload import Request


def answer_locally(
    record: Record,
    front: FrontTimes,
    request: Request,
    *,
    asked_s: float,
    begun_s: float,
    chunk: int,
    sample_s: float,
    horizon_s: float,
    drawn: bool,
) -> tuple[float, float]:
    """Put the tokens into the record; returns when the first and the last of them came.

    begun_s: when the device was free for it. sample_s: drawing one token on the device.
    """
    at_s, position = begun_s, 0
    while position < request.prompt_tokens:
        rows = min(chunk, request.prompt_tokens - position)
        at_s += front.seconds(rows, position)
        front.busy_s += front.seconds(rows, position)
        position += rows
    since_s, first_s = asked_s, 0.0
    computed_s = at_s - begun_s
    for token in range(request.output_tokens):
        at_s += sample_s
        front.busy_s += computed_s + sample_s if token else sample_s
        record.add(
            RoundMoments(since_s, computed_s + sample_s, 0.0, at_s, at_s, at_s, 0.0, at_s),
            is_first=token == 0,
            accepted=0,
            is_recovered=False,
            drawn=drawn,
        )
        record.tokens_in_time += at_s <= horizon_s
        first_s = first_s or at_s
        since_s = at_s
        computed_s = front.step_s(position + token)
        at_s += computed_s
    return first_s, since_s
