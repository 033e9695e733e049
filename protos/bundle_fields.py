"""A served bundle as messages carry it, both ways."""

from __future__ import annotations

from dataclasses import asdict

from protos import split_inference_pb2 as pb
from protos.errors import RemoteWireError
from protos.fields import hex_sha256, in_range, plain_text
from protos.limits import MAX_BUNDLE_NAME_BYTES, MAX_LAYERS, MAX_WIDTH
from protos.messages import ServedBundle


def bundle_to_proto(bundle: ServedBundle) -> pb.ServedBundle:
    """The message of a bundle."""
    return pb.ServedBundle(**asdict(bundle))


def bundle_from_proto(message: pb.ServedBundle) -> ServedBundle:
    """The bundle of a message. Raises RemoteWireError."""
    if len(message.name.encode()) > MAX_BUNDLE_NAME_BYTES:
        raise RemoteWireError(f"a bundle's name of more than {MAX_BUNDLE_NAME_BYTES} bytes")
    num_layers = in_range("num_layers", message.num_layers, 0, MAX_LAYERS)
    return ServedBundle(
        name=plain_text(message.name),
        manifest_sha256=hex_sha256("manifest_sha256", message.manifest_sha256),
        model_id=plain_text(message.model_id),
        model_sha256=hex_sha256("model_sha256", message.model_sha256),
        split=in_range("split", message.split, 0, num_layers),
        first_layer=in_range("first_layer", message.first_layer, 0, num_layers),
        num_layers=num_layers,
        hidden_size=in_range("hidden_size", message.hidden_size, 1, MAX_WIDTH),
        max_tokens=message.max_tokens,
        active_sessions=message.active_sessions,
        kv_bytes_in_use=message.kv_bytes_in_use,
        kv_bytes_limit=message.kv_bytes_limit,
    )
