"""The door to the messages of a pull: how a device gets its side of a bundle from a server.

Messages to bytes and back, with every number range-checked, as `protos.wire` does for sessions.
Every decoding function raises RemoteWireError, and VersionError for another protocol version; every
encoding one LocalWireError.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from protos import split_inference_pb2 as pb
from protos.bundle_fields import bundle_from_proto, bundle_to_proto
from protos.errors import LocalWireError, RemoteWireError
from protos.fields import check_version, hex_sha256, in_range, parse, serialize
from protos.limits import (
    MAX_BUNDLE_NAME_BYTES,
    MAX_CHUNK_BYTES,
    MAX_FILE_BYTES,
    MAX_FILE_NAME_BYTES,
    MAX_MANIFEST_BYTES,
    MIN_CHUNK_BYTES,
    PROTOCOL_VERSION,
)
from protos.messages import ServedBundle
from protos.wire import SERVICE_NAME

__all__ = [
    "FETCH_PATH",
    "LIST_FILES_PATH",
    "MAX_CHUNK_BYTES",
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_BYTES",
    "MIN_CHUNK_BYTES",
    "FetchRequest",
    "FileChunk",
    "FileList",
    "decode_fetch_request",
    "decode_file_chunk",
    "decode_file_list",
    "decode_list_files_request",
    "encode_fetch_request",
    "encode_file_chunk",
    "encode_file_list",
    "encode_list_files_request",
]

LIST_FILES_PATH: Final = f"/{SERVICE_NAME}/ListFiles"
FETCH_PATH: Final = f"/{SERVICE_NAME}/Fetch"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileList:
    """The manifest of a server's bundle: the bytes of its `manifest.json`.

    bundle: which one it is; None from a server of an earlier version, which has one.
    """

    manifest: bytes = field(repr=False)
    bundle: ServedBundle | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest in lower-case hex: it names this state of the bundle."""
        return hashlib.sha256(self.manifest).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """Asks for a file from byte `offset` on.

    manifest_sha256: of the list that has the name, so that a server with another bundle says so.
    max_chunk_bytes: most bytes of one chunk.
    """

    manifest_sha256: str
    name: str
    offset: int = 0
    max_chunk_bytes: int = MAX_CHUNK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChunk:
    """Bytes of a file; the first of them is at `offset`."""

    offset: int
    data: bytes = field(repr=False)


def encode_list_files_request(bundle: str = "") -> bytes:
    """The question of `ListFiles`. bundle: names one (`protos.bundle_names`); empty: the only one.

    The caller bounds its length by `MAX_BUNDLE_NAME_BYTES`; a longer one raises LocalWireError.
    """
    if len(bundle.encode()) > MAX_BUNDLE_NAME_BYTES:
        raise LocalWireError(f"a bundle's name of more than {MAX_BUNDLE_NAME_BYTES} bytes")
    return serialize(lambda: pb.ListFilesRequest(protocol_version=PROTOCOL_VERSION, bundle=bundle))


def decode_list_files_request(data: bytes) -> str:
    """What the question of `ListFiles` names; empty: nothing."""
    message = parse(pb.ListFilesRequest, data)
    check_version(message.protocol_version)
    in_range("the length of bundle", len(message.bundle.encode()), 0, MAX_BUNDLE_NAME_BYTES)
    return message.bundle


def encode_file_list(files: FileList) -> bytes:
    """The answer of `ListFiles`."""
    if len(files.manifest) > MAX_MANIFEST_BYTES:
        raise LocalWireError(f"a manifest of {len(files.manifest)} bytes is too large to send")
    return serialize(
        lambda: pb.FileList(
            protocol_version=PROTOCOL_VERSION,
            manifest=files.manifest,
            manifest_sha256=files.sha256,
            bundle=None if files.bundle is None else bundle_to_proto(files.bundle),
        )
    )


def decode_file_list(data: bytes) -> FileList:
    """The answer of `ListFiles`. What the manifest says is still to be checked."""
    message = parse(pb.FileList, data)
    check_version(message.protocol_version)
    in_range("manifest", len(message.manifest), 1, MAX_MANIFEST_BYTES)
    bundle = bundle_from_proto(message.bundle) if message.HasField("bundle") else None
    files = FileList(manifest=message.manifest, bundle=bundle)
    if hex_sha256("manifest_sha256", message.manifest_sha256) != files.sha256:
        raise RemoteWireError("the manifest was changed on its way (SHA-256)")
    if bundle is not None and bundle.manifest_sha256 != files.sha256:
        raise RemoteWireError("the list is of another bundle than it says (SHA-256)")
    return files


def encode_fetch_request(request: FetchRequest) -> bytes:
    """The question of `Fetch`."""
    return serialize(
        lambda: pb.FetchRequest(
            protocol_version=PROTOCOL_VERSION,
            manifest_sha256=request.manifest_sha256,
            name=request.name,
            offset=request.offset,
            max_chunk_bytes=request.max_chunk_bytes,
        )
    )


def decode_fetch_request(data: bytes) -> FetchRequest:
    """The question of `Fetch`. Whether there is such a file is for the server to say."""
    message = parse(pb.FetchRequest, data)
    check_version(message.protocol_version)
    in_range("the length of name", len(message.name.encode()), 1, MAX_FILE_NAME_BYTES)
    wanted = message.max_chunk_bytes or MAX_CHUNK_BYTES
    return FetchRequest(
        manifest_sha256=hex_sha256("manifest_sha256", message.manifest_sha256),
        name=message.name,
        offset=in_range("offset", message.offset, 0, MAX_FILE_BYTES),
        max_chunk_bytes=min(max(wanted, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES),
    )


def encode_file_chunk(chunk: FileChunk) -> bytes:
    """One message of the answer of `Fetch`."""
    return serialize(lambda: pb.FileChunk(offset=chunk.offset, data=chunk.data))


def decode_file_chunk(data: bytes) -> FileChunk:
    """One message of the answer of `Fetch`."""
    message = parse(pb.FileChunk, data)
    in_range("the size of a chunk", len(message.data), 1, MAX_CHUNK_BYTES)
    return FileChunk(
        offset=in_range("offset", message.offset, 0, MAX_FILE_BYTES), data=message.data
    )
