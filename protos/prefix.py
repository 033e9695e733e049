"""The hash that names the beginning of a session: a chain over its frames, byte for byte.

Two sessions whose chains agree have sent the same encoded rows for the same tokens, to the same
layers of the same model: what the cloud computed of them is the same, so it can be shared, and the
second one need not send them again. Both sides compute it: the edge names the frames it could
send, the cloud those that it has run.
"""

from __future__ import annotations

import hashlib

from protos.messages import Frame, Open


def begin_chain(request: Open) -> bytes:
    """The hash before the first frame: model, split and codec tables."""
    terms = (request.model_sha256, str(request.split), request.codec_tables_sha256)
    return hashlib.sha256("\n".join(terms).encode()).digest()


def extend_chain(chain: bytes, frame: Frame) -> bytes:
    """The hash after `frame`, which follows those that `chain` stands for."""
    ids = ",".join(map(str, frame.token_ids))
    head = f"{frame.first_position}:{ids}:".encode()
    return hashlib.sha256(chain + head + hashlib.sha256(frame.hidden).digest()).digest()
