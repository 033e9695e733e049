"""Bytes to messages, with every number range-checked.

Whatever arrives is hostile until it has passed here. What leaves is a well-formed value; whether
it fits the session is for the session to decide. Every function raises RemoteWireError, which says
what is wrong, and VersionError for another version of the protocol.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Sequence
from typing import Final

from protos import split_inference_pb2 as pb
from protos.bulk import check_rest
from protos.bundle_fields import bundle_from_proto
from protos.draft_fields import drafts_from_proto
from protos.errors import RemoteWireError
from protos.fields import check_version, hex_sha256, in_range, parse, plain_text
from protos.limits import (
    DEFAULT_FRAMES_IN_FLIGHT,
    EXTENDED_VERSION,
    MAX_BUNDLES,
    MAX_DRAFT_IDS,
    MAX_DRAFT_SOURCES,
    MAX_END_TOKENS,
    MAX_FRAME_DRAFTS,
    MAX_FRAME_TOKENS,
    MAX_FRAMES_IN_FLIGHT,
    MAX_KEPT_BYTES,
    MAX_LAYERS,
    MAX_MESSAGE_BYTES,
    MAX_PREFIX_HASHES,
    MAX_PROBE_BYTES,
    MAX_RESUME_S,
    MAX_SALT_BYTES,
    MAX_TIMING_S,
    MAX_TOKENS,
    MAX_WIDTH,
    MIN_SALT_BYTES,
    SMALL_MESSAGE_BYTES,
    TINY_MESSAGE_BYTES,
)
from protos.messages import (
    Close,
    Closed,
    CloudMessage,
    Description,
    EdgeMessage,
    Frame,
    Open,
    Opened,
    ProbeChunk,
    Result,
    Timings,
)
from protos.sampling_fields import sampling_from_proto
from protos.score_fields import check_logprobs, check_top, top_from_flat

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def decode_edge(data: bytes) -> EdgeMessage:
    """One message of an edge. All but tiny ones are measured before parsing (`protos.bulk`)."""
    if TINY_MESSAGE_BYTES < len(data) <= MAX_MESSAGE_BYTES:
        check_rest(data, SMALL_MESSAGE_BYTES)
    message = parse(pb.EdgeMessage, data)
    kind = message.WhichOneof("kind")
    if kind == "open":
        return _open_from_proto(message.open)
    if kind == "frame":
        return _frame_from_proto(message.frame)
    if kind == "close":
        return Close()
    raise RemoteWireError("edge message of no known kind")


def decode_cloud(data: bytes) -> CloudMessage:
    """One message of a cloud."""
    message = parse(pb.CloudMessage, data)
    kind = message.WhichOneof("kind")
    if kind == "result":
        return _result_from_proto(message.result)
    if kind == "opened":
        opened = message.opened
        return Opened(
            session_id=_session_id(opened.session_id),
            max_frame_tokens=in_range(
                "max_frame_tokens", opened.max_frame_tokens, 1, MAX_FRAME_TOKENS
            ),
            held_frames=in_range("held_frames", opened.held_frames, 0, MAX_TOKENS),
            max_frames_in_flight=in_range(
                "max_frames_in_flight",
                opened.max_frames_in_flight
                if opened.HasField("max_frames_in_flight")
                else DEFAULT_FRAMES_IN_FLIGHT,
                1,
                MAX_FRAMES_IN_FLIGHT,
            ),
            token_rows=in_range("token_rows", opened.token_rows, 0, MAX_TOKENS),
            draft_ids=in_range("draft_ids", opened.draft_ids, 0, MAX_DRAFT_IDS),
            continued=opened.continued,
            max_positions=in_range("max_positions", opened.max_positions, 0, MAX_TOKENS),
            recall=opened.recall,
        )
    if kind == "drafts":
        return drafts_from_proto(message.drafts)
    if kind == "closed":
        return Closed(detail=plain_text(message.closed.detail))
    raise RemoteWireError("cloud message of no known kind")


def decode_description(data: bytes) -> Description:
    """The answer of `Describe`."""
    message = parse(pb.Description, data)
    check_version(message.protocol_version)
    num_layers = in_range("num_layers", message.num_layers, 0, MAX_LAYERS)
    in_range("the number of bundles", len(message.bundles), 0, MAX_BUNDLES)
    return Description(
        model_id=plain_text(message.model_id),
        model_sha256=hex_sha256("model_sha256", message.model_sha256),
        first_layer=in_range("first_layer", message.first_layer, 0, num_layers),
        num_layers=num_layers,
        hidden_size=in_range("hidden_size", message.hidden_size, 1, MAX_WIDTH),
        max_tokens=message.max_tokens,
        active_sessions=message.active_sessions,
        kv_bytes_in_use=message.kv_bytes_in_use,
        kv_bytes_limit=message.kv_bytes_limit,
        bundles=tuple(bundle_from_proto(one) for one in message.bundles),
    )


def decode_probe(data: bytes) -> ProbeChunk:
    """One message of `Probe`; of its padding only the size is kept."""
    message = parse(pb.ProbeChunk, data)
    return ProbeChunk(
        sequence=message.sequence,
        padding_bytes=in_range("padding", len(message.padding), 0, MAX_PROBE_BYTES),
        want_bytes=in_range("want_bytes", message.want_bytes, 0, MAX_PROBE_BYTES),
    )


def _open_from_proto(message: pb.Open) -> Open:
    check_version(message.protocol_version, newest=EXTENDED_VERSION)
    sampling = sampling_from_proto(message.sampling)
    return Open(
        session_id=_session_id(message.session_id),
        model_sha256=hex_sha256("model_sha256", message.model_sha256),
        split=in_range("split", message.split, 0, MAX_LAYERS),
        hidden_size=in_range("hidden_size", message.hidden_size, 1, MAX_WIDTH),
        codec_tables_sha256=hex_sha256("codec_tables_sha256", message.codec_tables_sha256),
        max_tokens=in_range("max_tokens", message.max_tokens, 1, MAX_TOKENS),
        sampling=sampling,
        resume_s=_seconds("resume_s", message.resume_s),
        prefix_hashes=_hashes(message.prefix_hashes),
        shareable_tokens=in_range("shareable_tokens", message.shareable_tokens, 0, MAX_TOKENS),
        prefix_salt=_salt(message.prefix_salt),
        token_rows=in_range("token_rows", message.token_rows, 0, MAX_TOKENS),
        continues=_session_id(message.continues) if message.continues else "",
        kv_tokens=in_range("kv_tokens", message.kv_tokens, 0, MAX_TOKENS),
        prompt_tokens=in_range("prompt_tokens", message.prompt_tokens, 0, MAX_TOKENS),
        end_token_ids=_end_tokens(message.end_token_ids),
        draft_ids=in_range("draft_ids", message.draft_ids, 0, MAX_DRAFT_IDS),
        max_positions=in_range("max_positions", message.max_positions, 0, MAX_TOKENS),
        entropies=message.entropies,
        recall=message.recall,
    )


def _frame_from_proto(message: pb.Frame) -> Frame:
    num_rows = in_range("token_ids", len(message.token_ids), 1, MAX_FRAME_TOKENS)
    return Frame(
        sequence=message.sequence,
        first_position=in_range("first_position", message.first_position, 0, MAX_TOKENS),
        token_ids=tuple(message.token_ids),
        hidden=message.hidden,
        num_drafts=in_range(
            "num_drafts", message.num_drafts, 0, min(num_rows - 1, MAX_FRAME_DRAFTS)
        ),
        want_token=message.want_token,
        ahead=message.ahead,
        kv=_kv(message),
        kept=_kept(message),
    )


def _result_from_proto(message: pb.Result) -> Result:
    in_range("token_ids", len(message.token_ids), 0, MAX_FRAME_DRAFTS + 1)
    if len(message.logprobs) not in (0, len(message.token_ids)):
        raise RemoteWireError("result: as many logprobs as tokens, or none")
    in_range("prompt_logprobs", len(message.prompt_logprobs), 0, MAX_FRAME_TOKENS)
    check_logprobs(message.logprobs)
    check_logprobs(message.prompt_logprobs)
    if len(message.entropies) not in (0, len(message.token_ids)):
        raise RemoteWireError("result: as many entropies as tokens, or none")
    in_range("prompt_entropies", len(message.prompt_entropies), 0, MAX_FRAME_TOKENS)
    check_top(message.prompt_top_ids, message.prompt_top_logprobs, len(message.prompt_logprobs))
    in_range("drafts", len(message.drafts), 0, MAX_DRAFT_SOURCES)
    timings = message.timings
    seconds = (timings.codec_s, timings.queue_s, timings.compute_s, timings.sample_s)
    if not all(math.isfinite(value) and 0 <= value <= MAX_TIMING_S for value in seconds):
        raise RemoteWireError(
            f"result: timings must be finite, not negative and at most {MAX_TIMING_S:g} s"
        )
    return Result(
        sequence=message.sequence,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(message.logprobs),
        num_tokens=in_range("num_tokens", message.num_tokens, 0, MAX_TOKENS),
        timings=Timings(
            codec_s=timings.codec_s,
            queue_s=timings.queue_s,
            compute_s=timings.compute_s,
            sample_s=timings.sample_s,
            batch_sessions=timings.batch_sessions,
            batch_rows=timings.batch_rows,
        ),
        top=top_from_flat(message.top_ids, message.top_logprobs, len(message.token_ids)),
        prompt_logprobs=tuple(message.prompt_logprobs),
        prompt_top_ids=array("I", message.prompt_top_ids),
        prompt_top_logprobs=array("f", message.prompt_top_logprobs),
        drafts=tuple(drafts_from_proto(drafts) for drafts in message.drafts),
        entropies=message.entropies,
        prompt_entropies=message.prompt_entropies,
    )


def _seconds(name: str, value: float) -> float:
    if not (math.isfinite(value) and 0 <= value <= MAX_RESUME_S):
        raise RemoteWireError(f"{name} is {value}, must lie between 0 and {MAX_RESUME_S:g}")
    return value


def _hashes(values: Sequence[bytes]) -> tuple[bytes, ...]:
    in_range("prefix_hashes", len(values), 0, MAX_PREFIX_HASHES)
    if any(len(value) != 32 for value in values):
        raise RemoteWireError("prefix_hashes are SHA-256 digests of 32 bytes")
    return tuple(values)


def _end_tokens(values: Sequence[int]) -> tuple[int, ...]:
    in_range("end_token_ids", len(values), 0, MAX_END_TOKENS)
    return tuple(values)


def _kv(message: pb.Frame) -> bytes:
    """Keys and values: beside ids that nothing runs for, since all else would be lost."""
    if message.kv and (message.hidden or message.num_drafts or message.want_token or message.ahead):
        raise RemoteWireError("a frame with kv brings ids and nothing else, and asks for no token")
    return message.kv


def _kept(message: pb.Frame) -> bytes:
    """Places that stay: of a cache that holds what both sides agree on, and of some tokens."""
    if not message.kept:
        return b""
    in_range("the length of kept", len(message.kept), 1, MAX_KEPT_BYTES)
    if message.kv or message.ahead:
        raise RemoteWireError("a frame that lets tokens leave comes neither ahead nor with kv")
    if not any(message.kept):
        raise RemoteWireError("a frame that keeps places of no cache")
    return message.kept


def _salt(value: bytes) -> bytes:
    if value:  # a short one could be guessed, and would only seem to keep names secret
        in_range("the length of prefix_salt", len(value), MIN_SALT_BYTES, MAX_SALT_BYTES)
    return value


def _session_id(value: str) -> str:
    if not _SESSION_ID.fullmatch(value):
        raise RemoteWireError("session_id must be 1 to 64 letters, digits, '-' or '_'")
    return value
