"""The hash that names the beginning of a session: a chain over its frames, byte for byte.

Two sessions with the same chain have sent the same encoded rows for the same tokens, to the same
layers of the same model. The cloud then computed the same for both. So it can share the result,
and the second session need not send those frames. Both sides compute the chain: the edge names
the frames that it could send, the cloud those that it has run.

Who can name a beginning can find out whether somebody has sent it. So a device puts a secret of
its own in front (`Open.prefix_salt`), unless it was asked to share with its tenant's others.
"""

from __future__ import annotations

import hashlib
import hmac

from protos.messages import Frame, Open


def begin_chain(request: Open) -> bytes:
    """The hash before the first frame, over model, split, codec tables and salt; 32 bytes.

    Without a salt it is that of the versions that knew none.
    """
    terms: tuple[str, ...] = (request.model_sha256, str(request.split), request.codec_tables_sha256)
    if request.recall:  # such a beginning comes with its rows, for later frames to refer to
        terms += ("recall",)
    plain = hashlib.sha256("\n".join(terms).encode()).digest()
    if not request.prefix_salt:
        return plain
    return hmac.digest(request.prefix_salt, plain, hashlib.sha256)


def extend_chain(chain: bytes, frame: Frame) -> bytes:
    """The hash after `frame`, which follows the frames that `chain` names; 32 bytes."""
    ids = ",".join(map(str, frame.token_ids))
    head = f"{frame.first_position}:{ids}:".encode()
    return hashlib.sha256(chain + head + hashlib.sha256(frame.hidden).digest()).digest()
