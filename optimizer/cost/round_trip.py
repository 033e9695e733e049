"""The formulas of one request: a decoding round part by part, and a prompt through the pipeline.

Ours. Every value may be a number (one deployment, `request.py`) or an array (every configuration of
a search, `optimizer.search.grid`). One round is a chain without overlap,

    front -> encode -> up -> queue -> decode -> back -> sample -> down,

because a token is needed before the next step begins. A prompt's chunks do overlap: while one
travels and runs in the cloud, the next is computed (`pipeline_s`, exact for three stages in line).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.rates import Floats, Quantity
from optimizer.cost.codec import answer_bytes
from optimizer.cost.link import LinkPoint, pipeline_s, transfer_s
from optimizer.cost.uncertainty import TermErrors, Terms, weight_of

# Round trips before a request's first chunk leaves. None on a connection that stands: it follows
# the Open. On a new one TCP's, TLS 1.3's and that of HTTP/2's settings come first (RFC 9113,
# section 3.4: the server's follow its accepting, and gRPC sends nothing before they are there).
OPEN_ROUND_TRIPS: Final = 0.0
NEW_CONNECTION_ROUND_TRIPS: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestParts:
    """Seconds of one round trip, in the order in which they pass.

    `up_s` and `down_s` are half the link's round trip, the message at the link's rate, and half of
    what both sides' network stacks take. `queue_s` is waiting for a place in the server's batch.
    """

    front_s: Quantity = 0.0
    encode_s: Quantity = 0.0
    up_s: Quantity = 0.0
    queue_s: Quantity = 0.0
    decode_s: Quantity = 0.0
    back_s: Quantity = 0.0
    sample_s: Quantity = 0.0
    down_s: Quantity = 0.0

    @property
    def total_s(self) -> Quantity:
        """The sum of the parts."""
        return self.layers_s + self.beside_layers_s

    @property
    def layers_s(self) -> Quantity:
        """The layers on both sides, with the wait for the server's batch: what grows with the
        position."""
        return self.front_s + (self.queue_s + self.back_s)

    @property
    def beside_layers_s(self) -> Quantity:
        """Coding, sampling and the wire."""
        return self.encode_s + self.up_s + self.decode_s + self.sample_s + self.down_s

    @property
    def wire_s(self) -> Quantity:
        """The message up and the answer down."""
        return self.up_s + self.down_s

    @property
    def cloud_s(self) -> Quantity:
        """What keeps the server busy: decoding, the back and sampling."""
        return self.decode_s + self.back_s + self.sample_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptChunks:
    """A prompt, chunk by chunk (last axis N): seconds in each stage and bytes of each message.

    `edge_s` is front and encoder, `cloud_s` waiting, decoder and back.
    """

    edge_s: Floats
    cloud_s: Floats
    frame_bytes: Floats


def round_over(
    link: LinkPoint,
    *,
    front_s: Quantity,
    encode_s: Quantity,
    num_bytes: Quantity,
    queue_s: Quantity,
    decode_s: Quantity,
    back_s: Quantity,
    sample_s: Quantity,
    num_answer_bytes: Quantity,
    stack_s: float,
) -> RequestParts:
    """A round over `link`: a message of `num_bytes` up, its answer down. `stack_s`: what both
    network stacks take. Infinite over a dead link."""
    return RequestParts(
        front_s=front_s,
        encode_s=encode_s,
        up_s=link.rtt_s / 2 + transfer_s(num_bytes, link.up_bytes_per_s) + stack_s / 2,
        queue_s=queue_s,
        decode_s=decode_s,
        back_s=back_s,
        sample_s=sample_s,
        down_s=link.rtt_s / 2 + transfer_s(num_answer_bytes, link.down_bytes_per_s) + stack_s / 2,
    )


def queue_s(back_s: Quantity, batch: int) -> Quantity:
    """Waiting for a place in the server's batch: on average the running one is half done when
    others are there; none alone."""
    return back_s / 2 if batch > 1 else back_s * 0.0


def between_tokens_s(
    layers_s: Quantity, beside_layers_s: Quantity, tokens_per_round: Quantity
) -> Quantity:
    """Time between tokens: the layers, and all that is beside them (drafting too), over the tokens
    that the round brings."""
    return (layers_s + beside_layers_s) / tokens_per_round


def cloud_share_s(cloud_s: Quantity, batch: int, tokens_per_round: Quantity) -> Quantity:
    """Seconds of the server for each token: a step is shared by the `batch` sessions in it."""
    return cloud_s / batch / tokens_per_round


def prompt_stages_s(chunks: PromptChunks, link: LinkPoint, *, connected_s: Quantity) -> Floats:
    """Seconds from the first chunk's start to the end of the last one's back. `connected_s`: when
    the connection stands, so that the first chunk may leave."""
    wire_s = transfer_s(chunks.frame_bytes, link.up_bytes_per_s)
    return pipeline_s(
        chunks.edge_s,
        np.broadcast_to(wire_s, np.shape(chunks.frame_bytes)),
        chunks.cloud_s,
        link_free_s=connected_s,
    )


def round_terms(
    parts: RequestParts,
    link: LinkPoint,
    *,
    stack_s: float,
    draft_s: Quantity = 0.0,
    is_whole: bool | npt.NDArray[np.bool_] = False,
) -> Terms:
    """What a round depends on, drafting included: its terms add up to it. is_whole: where the
    device asks nobody, and draws its tokens itself."""
    asks = np.where(is_whole, 0.0, 1.0)
    return Terms(
        edge=parts.front_s + parts.encode_s + draft_s + (1 - asks) * parts.sample_s,
        cloud=asks * (parts.queue_s + parts.cloud_s),
        round_trip=asks * link.rtt_s,
        transfer=np.maximum(parts.wire_s - asks * (link.rtt_s + stack_s), 0.0),
        stack=asks * stack_s,
    )


def stage_terms(
    chunks: PromptChunks, link: LinkPoint, errors: TermErrors, *, connected_s: Quantity
) -> Terms:
    """What a prompt's stages depend on (`prompt_stages_s`), each stretched by its own error."""

    def seconds(**stretched: Floats) -> Floats:
        return prompt_stages_s(replace(chunks, **stretched), link, connected_s=connected_s)

    total = seconds()
    return Terms(
        edge=weight_of(lambda f: seconds(edge_s=f * chunks.edge_s), total, errors.edge),
        cloud=weight_of(lambda f: seconds(cloud_s=f * chunks.cloud_s), total, errors.cloud),
        transfer=weight_of(
            lambda f: seconds(frame_bytes=f * chunks.frame_bytes), total, errors.transfer
        ),
    )


def first_token_terms(
    stages: Terms, link: LinkPoint, *, sample_s: Quantity, stack_s: float, is_whole: Quantity
) -> Terms:
    """The terms of the time to the first token: the stages', and what `first_answer_s` adds."""
    asks = 1.0 - np.asarray(is_whole)
    return Terms(
        edge=stages.edge + (1 - asks) * sample_s,
        cloud=stages.cloud + asks * sample_s,
        round_trip=stages.round_trip + asks * link.rtt_s,
        transfer=stages.transfer,
        stack=stages.stack + asks * stack_s,
    )


def first_answer_s(link: LinkPoint, *, sample_s: float, stack_s: float) -> float:
    """Seconds that the prompt's stages leave out: sampling, the answer, and the link's own time."""
    answer_s = float(transfer_s(answer_bytes(1), link.down_bytes_per_s))
    return sample_s + answer_s + link.rtt_s + stack_s


def opening_s(link: LinkPoint, *, round_trips: float, stack_s: float) -> float:
    """Seconds before a request's first chunk may leave."""
    return round_trips * (link.rtt_s + stack_s)


def stacks_s(edge: DeviceProfile, cloud: DeviceProfile) -> float:
    """What both sides' network stacks add to a round trip, where they were measured."""
    found = (device.overheads.message_s for device in (edge, cloud))
    return sum(figure.effective for figure in found if figure is not None)
