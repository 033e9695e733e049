"""What an edge's message costs to parse, found before it is parsed.

Parsing builds every number of a list, and keeps every field that it does not know. An honest
message of 33 MiB is one field of bytes, the rows or a move's keys and values, and a few kilobytes
more. A hostile one could hold 33 million token ids instead, or 21,000 unknown fields in 64 KiB. So
all but tiny messages are walked first, by the lengths of their fields and without their values. The
walk ends at the first limit, so it costs no more than a thousand fields. Source: the encoding of
Protocol Buffers (tag, length, value), https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.protobuf.message import Message

from decoding.grammar import MAX_GRAMMAR_BYTES
from protos import split_inference_pb2 as pb
from protos.errors import RemoteWireError
from protos.limits import MAX_FRAME_TOKENS, MAX_PREFIX_HASHES

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_EDGE_MESSAGE: Final = pb.EdgeMessage.DESCRIPTOR.full_name
_FRAME: Final = pb.Frame.DESCRIPTOR.full_name
_BULK: Final = tuple(pb.Frame.DESCRIPTOR.fields_by_name[name].number for name in ("hidden", "kv"))
_GRAMMAR: Final = pb.Grammar.DESCRIPTOR.full_name
_GRAMMAR_TEXT: Final = pb.Grammar.DESCRIPTOR.fields_by_name["text"].number
# The longest list of an honest message, one field an item, and its other fields.
MAX_FIELDS: Final = max(MAX_FRAME_TOKENS, MAX_PREFIX_HASHES) + 64
# A newer edge may say more than this side knows, but not much more.
MAX_UNKNOWN_FIELDS: Final = 16


def _children(kind: type[Message]) -> Mapping[int, str | None]:
    """The fields of a message by number, each with the name of the message that it holds."""
    return {
        field.number: None if field.message_type is None else field.message_type.full_name
        for field in kind.DESCRIPTOR.fields
    }


# By full name: an edge's message and all that it may hold.
_FIELDS: Final = {
    kind.DESCRIPTOR.full_name: _children(kind)
    for kind in (pb.EdgeMessage, pb.Open, pb.Sampling, pb.Grammar, pb.Frame, pb.Close)
}


def check_rest(data: bytes, most: int) -> None:
    """Raise RemoteWireError for an edge's message that is dear to parse.

    That is one with more than `most` bytes beside `hidden`, `kv` and a grammar's text, with more
    than `MAX_FIELDS` fields, or with more than `MAX_UNKNOWN_FIELDS` that this side does not know. A
    damaged message passes, because parsing says better what is wrong with it.
    """
    rest = num_fields = num_unknown = num_grammar = 0
    spans = [(0, len(data), _EDGE_MESSAGE)]
    while spans:
        at, end, name = spans.pop()
        known = _FIELDS[name]
        while at < end:
            begin = at
            tag, at = _varint(data, at, end)
            field, kind = tag >> 3, tag & 7
            num_fields += 1
            num_unknown += field not in known
            size = 0
            if kind == _BYTES:
                size, at = _varint(data, at, end)
                inner = known.get(field)
                if inner is not None:
                    spans.append((at, min(at + size, end), inner))
                    at += size
                    rest += 2
                    size = -1  # counted when it is walked
            elif kind == _VARINT:
                _, at = _varint(data, at, end)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:  # groups: nothing of ours
                raise RemoteWireError("a message with groups")
            if size >= 0:
                at += size
                is_bulk = field in _BULK and name == _FRAME
                if field == _GRAMMAR_TEXT and name == _GRAMMAR:
                    num_grammar += size
                    is_bulk = num_grammar <= MAX_GRAMMAR_BYTES  # the decoder refuses more
                rest += at - begin - (size if is_bulk else 0)
            if rest > most:
                raise RemoteWireError(f"more than {most} bytes beside the hidden states")
            if num_fields > MAX_FIELDS or num_unknown > MAX_UNKNOWN_FIELDS:
                raise RemoteWireError(
                    f"a message of more than {MAX_FIELDS} fields, or of more than "
                    f"{MAX_UNKNOWN_FIELDS} unknown ones"
                )


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
