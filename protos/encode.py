"""Messages to bytes.

Every function raises LocalWireError for a value that the wire does not carry: a bug of ours.
"""

from __future__ import annotations

from protos import split_inference_pb2 as pb
from protos.bundle_fields import bundle_to_proto
from protos.draft_fields import drafts_to_proto
from protos.fields import serialize
from protos.limits import (
    DEFAULT_FRAMES_IN_FLIGHT,
    EXTENDED_VERSION,
    MAX_DETAIL_CHARS,
    PROTOCOL_VERSION,
)
from protos.messages import (
    CloudMessage,
    Description,
    Drafts,
    EdgeMessage,
    Frame,
    Open,
    Opened,
    ProbeChunk,
    Result,
)
from protos.sampling_fields import sampling_to_proto
from protos.score_fields import flat_top


def encode_edge(message: EdgeMessage) -> bytes:
    """One message of the edge."""
    if isinstance(message, Open):
        sampling = message.sampling
        return serialize(
            lambda: pb.EdgeMessage(
                open=pb.Open(
                    protocol_version=(
                        EXTENDED_VERSION if sampling.is_extended else PROTOCOL_VERSION
                    ),
                    session_id=message.session_id,
                    model_sha256=message.model_sha256,
                    split=message.split,
                    hidden_size=message.hidden_size,
                    codec_tables_sha256=message.codec_tables_sha256,
                    max_tokens=message.max_tokens,
                    sampling=sampling_to_proto(sampling),
                    resume_s=message.resume_s,
                    prefix_hashes=message.prefix_hashes,
                    shareable_tokens=message.shareable_tokens,
                    prefix_salt=message.prefix_salt,
                    token_rows=message.token_rows,
                    continues=message.continues,
                    kv_tokens=message.kv_tokens,
                    prompt_tokens=(
                        message.prompt_tokens if sampling.is_extended or message.entropies else 0
                    ),
                    end_token_ids=message.end_token_ids if sampling.grammar else (),
                    draft_ids=message.draft_ids,
                    max_positions=message.max_positions,
                    entropies=message.entropies,
                    recall=message.recall,
                )
            )
        )
    if isinstance(message, Frame):
        return serialize(
            lambda: pb.EdgeMessage(
                frame=pb.Frame(
                    sequence=message.sequence,
                    first_position=message.first_position,
                    token_ids=message.token_ids,
                    hidden=message.hidden,
                    num_drafts=message.num_drafts,
                    want_token=message.want_token,
                    ahead=message.ahead,
                    kv=message.kv,
                    kept=message.kept,
                )
            )
        )
    return serialize(lambda: pb.EdgeMessage(close=pb.Close()))


def encode_cloud(message: CloudMessage) -> bytes:
    """One message of the cloud."""
    if isinstance(message, Result):
        timings = message.timings
        top_ids, top_logprobs = flat_top(message.top)
        return serialize(
            lambda: pb.CloudMessage(
                result=pb.Result(
                    sequence=message.sequence,
                    token_ids=message.token_ids,
                    logprobs=message.logprobs,
                    num_tokens=message.num_tokens,
                    timings=pb.Timings(
                        codec_s=timings.codec_s,
                        queue_s=timings.queue_s,
                        compute_s=timings.compute_s,
                        sample_s=timings.sample_s,
                        batch_sessions=timings.batch_sessions,
                        batch_rows=timings.batch_rows,
                    ),
                    top_ids=top_ids,
                    top_logprobs=top_logprobs,
                    prompt_logprobs=message.prompt_logprobs,
                    prompt_top_ids=message.prompt_top_ids,
                    prompt_top_logprobs=message.prompt_top_logprobs,
                    drafts=[drafts_to_proto(drafts) for drafts in message.drafts],
                    entropies=message.entropies,
                    prompt_entropies=message.prompt_entropies,
                )
            )
        )
    if isinstance(message, Opened):
        return serialize(
            lambda: pb.CloudMessage(
                opened=pb.Opened(
                    session_id=message.session_id,
                    max_frame_tokens=message.max_frame_tokens,
                    held_frames=message.held_frames,
                    # Left out where it is the default, so that old edges see the same bytes.
                    max_frames_in_flight=_unless(
                        DEFAULT_FRAMES_IN_FLIGHT, message.max_frames_in_flight
                    ),
                    token_rows=message.token_rows,
                    draft_ids=message.draft_ids,
                    continued=message.continued,
                    max_positions=message.max_positions,
                    recall=message.recall,
                )
            )
        )
    if isinstance(message, Drafts):
        return serialize(lambda: pb.CloudMessage(drafts=drafts_to_proto(message)))
    detail = message.detail[:MAX_DETAIL_CHARS]
    return serialize(lambda: pb.CloudMessage(closed=pb.Closed(detail=detail)))


def encode_describe_request() -> bytes:
    """The question of `Describe`, which has no fields."""
    return serialize(pb.DescribeRequest)


def encode_description(description: Description) -> bytes:
    """The answer of `Describe`."""
    return serialize(
        lambda: pb.Description(
            protocol_version=PROTOCOL_VERSION,
            model_id=description.model_id,
            model_sha256=description.model_sha256,
            first_layer=description.first_layer,
            num_layers=description.num_layers,
            hidden_size=description.hidden_size,
            max_tokens=description.max_tokens,
            active_sessions=description.active_sessions,
            kv_bytes_in_use=description.kv_bytes_in_use,
            kv_bytes_limit=description.kv_bytes_limit,
            bundles=[bundle_to_proto(one) for one in description.bundles],
        )
    )


def encode_probe(chunk: ProbeChunk) -> bytes:
    """One message of `Probe`; the padding is zeros."""
    return serialize(
        lambda: pb.ProbeChunk(
            sequence=chunk.sequence,
            padding=bytes(chunk.padding_bytes),
            want_bytes=chunk.want_bytes,
        )
    )


def _unless(default: int, value: int) -> int | None:
    return None if value == default else value
