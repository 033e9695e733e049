"""A server in memory that a pull gets its files from, honest unless a test makes it lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from protos.pull import FetchRequest, FileChunk, FileList

MODEL = "ab" * 32
FILES = {
    "plan.yaml": b"plan",
    "edge/front.onnx": b"front" * 40,
    "edge/tokenizer.json": b"{}",
    "codec/split-2.tables": b"tables" * 9,
}


def record_of(content: bytes) -> dict[str, Any]:
    return {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    """A manifest as `splitpoint build` writes it, with a file of the cloud's beside these."""
    records = {name: record_of(content) for name, content in files.items()}
    records["cloud/back.safetensors"] = record_of(b"secret")
    return json.dumps({"format": 1, "model_sha256": MODEL, "files": records}).encode()


class FakeSource:
    """Serves `files`. requests: all that were made. chunks: makes a request's chunks."""

    address = "cloud.example:50051"

    def __init__(
        self,
        files: Mapping[str, bytes] = FILES,
        *,
        manifest: bytes | None = None,
        chunks: Callable[[FetchRequest, bytes], Iterator[FileChunk]] | None = None,
    ) -> None:
        self.files = dict(files)
        self.requests: list[FetchRequest] = []
        self._manifest = manifest
        self._chunks = chunks or honest

    def list_files(self) -> FileList:
        made = manifest_of(self.files) if self._manifest is None else self._manifest
        return FileList(manifest=made)

    def fetch(self, request: FetchRequest) -> Iterator[FileChunk]:
        self.requests.append(request)
        return self._chunks(request, self.files[request.name])


def honest(request: FetchRequest, content: bytes) -> Iterator[FileChunk]:
    size = min(request.max_chunk_bytes, 16)
    for offset in range(request.offset, len(content), size):
        yield FileChunk(offset=offset, data=content[offset : offset + size])
