"""The text of files that people write: UTF-8, with or without a byte order mark."""

from __future__ import annotations

import codecs
from typing import Final

_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotUtf8Error(ValueError):
    """The bytes are not UTF-8. The message says where, and what to do."""


def utf8_text(data: bytes) -> str:
    """A file's bytes as text, without the mark. NotUtf8Error when they are not UTF-8."""
    num_mark = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[num_mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        kind = "this looks like UTF-16" if data.startswith(_UTF16) else "not UTF-8"
        at = num_mark + error.start
        raise NotUtf8Error(
            f"{kind} (byte 0x{data[at]:02x} at offset {at}): save the file as UTF-8"
        ) from error
