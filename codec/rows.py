"""What goes in and out of every codec: rows of float32 and the ids of their input tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from codec.arrays import F32, I64, Mask
from codec.errors import EncodeError, FrameError
from codec.frame import MAX_ROWS

Rows: TypeAlias = F32  # [T, D]
TokenIds: TypeAlias = I64  # [T]
RowMask: TypeAlias = Mask  # [T]

# A frame of up to this many rows is coded with the arithmetic of one-row frames.
ROWWISE_UP_TO: Final = 32


class Encoded(NamedTuple):
    """A payload, and which of the T rows it leaves out because no code of its level fits them."""

    payload: bytes
    declined: RowMask


class RowCodec(Protocol):
    """One level's coder. Payloads carry no header; `codec.ladder` frames them."""

    @property
    def kind(self) -> int:
        """Number of the codec's kind, as the frame says it."""

    def encode(self, rows: Rows, token_ids: TokenIds) -> Encoded:
        """rows [T, D] and token_ids [T] to a payload of the rows that are not declined.

        Whether a row is declined depends on that row alone.
        """

    def decode(self, payload: bytes, num_rows: int, token_ids: TokenIds) -> Rows:
        """The rows [num_rows, D] back. Raises FrameError on a payload that is not one."""


@runtime_checkable
class DecodesTogether(RowCodec, Protocol):
    """A coder that can decode several payloads in one call."""

    def takes_together(self, num_rows: int) -> bool:
        """Whether `decode_together` takes payloads of so many rows."""

    def decode_together(
        self, payloads: Sequence[bytes], token_ids: Sequence[TokenIds]
    ) -> list[Rows | None]:
        """What `decode` gives for each; None where `decode` has to be asked."""


def times(rows: Rows, matrix: F32) -> Rows:
    """rows [T, N] @ matrix [N, M].

    A matrix product of many rows adds up in another order than one of a single row, and the last
    bits differ. Up to ROWWISE_UP_TO rows go one by one, so that each comes out as if sent alone.
    """
    if not 1 < len(rows) <= ROWWISE_UP_TO:
        return np.asarray(rows @ matrix)
    return np.concatenate([rows[index : index + 1] @ matrix for index in range(len(rows))])


def check_rows(rows: Rows, token_ids: TokenIds, hidden_size: int) -> None:
    """Refuse, as EncodeError, anything but finite float32 [T, hidden_size] with T token ids."""
    if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != hidden_size:
        raise EncodeError(
            f"rows are {rows.dtype} {list(rows.shape)}, expected float32 [T, {hidden_size}]"
        )
    if len(rows) > MAX_ROWS:
        raise EncodeError(f"{len(rows)} rows in one frame; the most is {MAX_ROWS}")
    check_token_ids(token_ids, len(rows), EncodeError)
    if not np.isfinite(rows).all():
        where = np.argwhere(~np.isfinite(rows))[0]
        raise EncodeError(f"row {where[0]} has NaN or infinity at channel {where[1]}")


def check_token_ids(
    token_ids: TokenIds, num_rows: int, error: type[EncodeError] | type[FrameError]
) -> None:
    """Refuse token ids that are not one integer per row, with the exception of that side."""
    if token_ids.shape != (num_rows,) or token_ids.dtype.kind not in "iu":
        raise error(
            f"token ids are {token_ids.dtype} {list(token_ids.shape)}, expected int64 [{num_rows}]"
        )
