"""The first tokens of a session whose split moved towards the cloud: where their KV comes from.

An older session of the device holds keys and values of its layers. The edge sends those of the
layers between the two splits, in frames (`Frame.kv`). Both go to the new session's blocks, frame by
frame, and then the older blocks are free. Nothing is computed again.

The older session's blocks are copied, not kept: the new session then has one run of blocks for all
its layers. So its steps run in one batch with others', its length is not bound by the older one's,
and it can move again.
"""

from __future__ import annotations

from functools import partial

from cloud.engine.batch_entry import FloatRows
from cloud.engine.frame_decoding import Decoded, RowDecoder
from cloud.errors import BadFrameError
from cloud.kv.moved import copy_kv, fits_arena, write_kv
from cloud.kv.pool import KvLease
from codec.errors import FrameError
from codec.kv.frame import KvFrames
from protos.messages import Frame


class MovedKv:
    """See the module's docstring. Owns the older lease; `close` frees it."""

    def __init__(self, older: KvLease, tokens: tuple[int, ...], frames: KvFrames) -> None:
        """tokens: those to begin with, as the older session got them. frames: decodes the edge's
        part."""
        self.tokens = tokens
        self._older = older
        self._frames = frames

    @property
    def num_tokens(self) -> int:
        """How many tokens the session begins with."""
        return len(self.tokens)

    def decoder_of(self, frame: Frame) -> RowDecoder:
        """What decodes the frame's keys and values, float32 [T, n, 2, G, d]. Any thread may ask."""
        return partial(self._decode, frame)

    def take(self, frame: Frame, lease: KvLease, decoded: Decoded | None) -> None:
        """Fill the frame's positions of `lease`, which grows. Raises BadFrameError."""
        begin, end = frame.first_position, frame.first_position + len(frame.token_ids)
        if not frame.kv or begin != lease.length or end > self.num_tokens:
            raise BadFrameError(
                f"frame {frame.sequence} of positions {begin} to {end} came before the keys and "
                f"values from {lease.length} to {self.num_tokens}"
            )
        if frame.token_ids != self.tokens[begin:end]:
            raise BadFrameError(
                f"frame {frame.sequence} names other tokens than the session that it goes on from"
            )
        kv = self._decode(frame) if decoded is None else decoded.rows()
        if not fits_arena(lease, kv):
            raise BadFrameError(f"frame {frame.sequence}: keys or values beyond this server's type")
        write_kv(lease, first_layer=lease.split, begin=begin, kv=kv)
        copy_kv(self._older, lease, begin=begin, end=end)
        lease.length = end

    def close(self) -> None:
        """Free the older session's blocks; doing it again does nothing."""
        self._older.close()

    def _decode(self, frame: Frame) -> FloatRows:
        try:
            return self._frames.decode(frame.kv, num_tokens=len(frame.token_ids))
        except FrameError as error:
            raise BadFrameError(f"frame {frame.sequence}: {error}") from error
