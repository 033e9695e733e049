"""The door to the wire: messages to bytes and back, the method paths, and the limits.

The other rooms import this module and never the generated stubs. The functions work on bytes, so
that gRPC channels and servers need nothing but the method paths below.

encode.py           messages to bytes
decode.py           bytes to messages, range-checked
sampling_fields.py  how tokens are chosen, both ways
score_fields.py     log-probabilities of a result, both ways
bundle_fields.py    a served bundle, both ways
draft_fields.py     what the cloud guesses, both ways
bulk.py             how much of a large message is not hidden states, before it is parsed
limits.py           the bounds that both check
metadata.py         the names of the gRPC metadata
"""

from __future__ import annotations

from typing import Final

from protos import split_inference_pb2 as pb
from protos.decode import decode_cloud, decode_description, decode_edge, decode_probe
from protos.encode import (
    encode_cloud,
    encode_describe_request,
    encode_description,
    encode_edge,
    encode_probe,
)
from protos.limits import (
    DEFAULT_FRAMES_IN_FLIGHT,
    MAX_ANSWER_BYTES,
    MAX_DETAIL_CHARS,
    MAX_DRAFT_IDS,
    MAX_FRAME_DRAFTS,
    MAX_FRAME_TOKENS,
    MAX_FRAMES_IN_FLIGHT,
    MAX_MESSAGE_BYTES,
    MAX_PREFIX_HASHES,
    MAX_PROBE_BYTES,
    MAX_RESUME_S,
    MAX_TOKENS,
    PROTOCOL_VERSION,
    SMALL_MESSAGE_BYTES,
)
from protos.metadata import AUTHORIZATION_KEY, RETRY_AFTER_KEY, TRACEPARENT_KEY

__all__ = [
    "AUTHORIZATION_KEY",
    "DEFAULT_FRAMES_IN_FLIGHT",
    "DESCRIBE_PATH",
    "GENERATE_PATH",
    "MAX_ANSWER_BYTES",
    "MAX_DETAIL_CHARS",
    "MAX_DRAFT_IDS",
    "MAX_FRAMES_IN_FLIGHT",
    "MAX_FRAME_DRAFTS",
    "MAX_FRAME_TOKENS",
    "MAX_MESSAGE_BYTES",
    "MAX_PREFIX_HASHES",
    "MAX_PROBE_BYTES",
    "MAX_RESUME_S",
    "MAX_TOKENS",
    "PROBE_PATH",
    "PROTOCOL_VERSION",
    "RETRY_AFTER_KEY",
    "SERVICE_NAME",
    "SMALL_MESSAGE_BYTES",
    "TRACEPARENT_KEY",
    "decode_cloud",
    "decode_description",
    "decode_edge",
    "decode_probe",
    "encode_cloud",
    "encode_describe_request",
    "encode_description",
    "encode_edge",
    "encode_probe",
]

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["SplitInference"].full_name
GENERATE_PATH: Final = f"/{SERVICE_NAME}/Generate"
DESCRIBE_PATH: Final = f"/{SERVICE_NAME}/Describe"
PROBE_PATH: Final = f"/{SERVICE_NAME}/Probe"
