"""The cloud's guesses, both ways: a position's choices lie one after the other on the wire."""

from __future__ import annotations

from protos import split_inference_pb2 as pb
from protos.errors import RemoteWireError
from protos.limits import (
    MAX_DRAFT_CHOICES,
    MAX_DRAFT_IDS,
    MAX_DRAFT_SOURCES,
    MAX_TOKENS,
)
from protos.messages import DraftChoice, Drafts


def drafts_to_proto(drafts: Drafts) -> pb.Drafts:
    """A value to its message. ValueError where positions have different numbers of choices."""
    widths = {len(choices) for choices in drafts.choices}
    if len(widths) > 1:
        raise ValueError("drafts: every position has equally many choices")
    flat = [choice for choices in drafts.choices for choice in choices]
    return pb.Drafts(
        first_position=drafts.first_position,
        width=widths.pop() if widths else 1,
        token_ids=[choice.token_id for choice in flat],
        confidences=bytes(int(255 * min(max(choice.confidence, 0.0), 1.0)) for choice in flat),
        source=drafts.source,
    )


def drafts_from_proto(message: pb.Drafts) -> Drafts:
    """A message to its value. RemoteWireError for numbers out of range."""
    width, count = message.width, len(message.token_ids)
    if not 1 <= width <= MAX_DRAFT_CHOICES:
        raise RemoteWireError(
            f"drafts: {width} choices, must lie between 1 and {MAX_DRAFT_CHOICES}"
        )
    if count % width or count > MAX_DRAFT_IDS * width:
        raise RemoteWireError(f"drafts: {count} tokens in rows of {width}")
    if len(message.confidences) != count:
        raise RemoteWireError("drafts: as many confidences as tokens")
    if message.first_position > MAX_TOKENS or message.source >= MAX_DRAFT_SOURCES:
        raise RemoteWireError("drafts: position or source out of range")
    flat = [
        DraftChoice(token_id, confidence / 255)
        for token_id, confidence in zip(message.token_ids, message.confidences, strict=True)
    ]
    return Drafts(
        first_position=message.first_position,
        choices=tuple(tuple(flat[at : at + width]) for at in range(0, count, width)),
        source=message.source,
    )
