"""A grammar that an answer has to follow: its kind and its text, bounded before anybody reads it.

Whether the text makes sense is for `decoding.matcher` to find out. It runs where tokens are chosen:
on the server, or on a device that holds the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GRAMMAR_KINDS: Final = ("json_object", "json_schema", "regex", "lark")
MAX_GRAMMAR_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What the whole answer has to match.

    kind: "json_object" (any JSON object), "json_schema" (a JSON schema as text), "regex" (a regular
    expression without look-around) or "lark" (a grammar as llguidance reads it, whose first rule is
    `start`). text: the schema, expression or grammar in at most 64 KiB of UTF-8; empty for
    "json_object". Raises ValueError for another kind, and for text that is missing or too long.
    """

    kind: str
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in GRAMMAR_KINDS:
            raise ValueError(f"a grammar's kind is one of {', '.join(GRAMMAR_KINDS)}")
        if not isinstance(self.text, str):
            raise ValueError("a grammar's text must be a string")
        try:
            num_bytes = len(self.text.encode())
        except UnicodeEncodeError:
            raise ValueError("a grammar's text holds half a character (a lone surrogate)") from None
        if num_bytes > MAX_GRAMMAR_BYTES:
            raise ValueError(f"a grammar of {num_bytes} bytes: at most {MAX_GRAMMAR_BYTES}")
        if (self.kind == "json_object") != (not self.text):
            has = "has no text of its own" if self.text else "needs its text"
            raise ValueError(f"a grammar of kind {self.kind} {has}")
