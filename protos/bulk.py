"""How much of an edge's message is not its hidden states, found before it is parsed.

Parsing builds every number of a list. An honest message of 33 MiB is one field of bytes, the
rows, and a few kilobytes more. A hostile one could hold 33 million token ids instead, and parsing
it would cost four times its size before anybody counted them. So a large message is walked first,
by the lengths of its fields and without their values. Source: the encoding of Protocol Buffers
(tag, length, value), https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from typing import Final

from protos import split_inference_pb2 as pb
from protos.errors import RemoteWireError

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_FRAME: Final = pb.EdgeMessage.DESCRIPTOR.fields_by_name["frame"].number
_HIDDEN: Final = pb.Frame.DESCRIPTOR.fields_by_name["hidden"].number


def check_rest(data: bytes, most: int) -> None:
    """Raise RemoteWireError when more than `most` bytes of an edge's message are not `hidden`.

    It stops there, so it looks at `most` fields at most. A damaged message passes, because parsing
    says better what is wrong with it.
    """
    rest = 0
    spans = [(0, len(data), False)]
    while spans:
        at, end, in_frame = spans.pop()
        while at < end:
            begin = at
            tag, at = _varint(data, at, end)
            field, kind = tag >> 3, tag & 7
            size = 0
            if kind == _BYTES:
                size, at = _varint(data, at, end)
                if field == _FRAME and not in_frame:
                    spans.append((at, min(at + size, end), True))
                    at += size
                    rest += 2
                    continue
            elif kind == _VARINT:
                _, at = _varint(data, at, end)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:  # groups: nothing of ours
                raise RemoteWireError("a message with groups")
            at += size
            rest += at - begin - (size if in_frame and field == _HIDDEN else 0)
            if rest > most:
                raise RemoteWireError(f"more than {most} bytes beside the hidden states")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number that begins at `at`, and where the next field does; `end` cuts it short."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, at
