"""Finds tool calls in an answer while it comes: text passes, a call is held until it is whole.

The answer is the model's, so it may hold anything. What does not read as a call of a known tool is
text, and none of it is lost.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from edge.api.tool_calls.forms import CallForm

MAX_CALLS_READ: Final = 128
_DECODER: Final = json.JSONDecoder()
# Mistral's later form: the name stands before its arguments.
_NAMED: Final = re.compile(r"\s*([A-Za-z0-9_.-]{1,64})(?:\[CALL_ID\]\w{1,64})?(?:\[ARGS\])?(?=\{)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of one tool. arguments: a JSON object as text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def to_json(self) -> dict[str, Any]:
        """OpenAI's object."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class ReadPart(NamedTuple):
    """What can be shown now: text, and calls that are whole."""

    text: str
    calls: tuple[ToolCall, ...]


class ToolCallReader:
    """One answer's reader. names: the tools that may be called. parallel: more than one call."""

    def __init__(self, form: CallForm, names: frozenset[str], *, parallel: bool) -> None:
        self._form = form
        self._names = names
        self._most = MAX_CALLS_READ if parallel else 1
        self._num_calls = 0
        self._held = ""
        self._opened = ""  # the marker of the call that is read
        self._inside = False
        self._has_text = False

    @property
    def markers(self) -> frozenset[str]:
        """Names of special tokens that are to be pushed as text."""
        return self._form.markers

    def push(self, text: str) -> ReadPart:
        """Take the next text of the answer."""
        self._held += text
        shown = ""
        calls: list[ToolCall] = []
        tries = "}" in text or "]" in text or bool(self._form.closes)
        while True:
            if not self._inside:
                shown += self._before_call()
                if not self._inside:
                    break
            found = self._call() if tries else None
            if found is None:
                break
            shown += found.text
            calls += found.calls
        return ReadPart(shown, self._allowed(calls))

    def flush(self) -> ReadPart:
        """The answer has ended: what is held is a call, or text."""
        part = self.push("")
        found = self._call(at_end=True) if self._inside else None
        text = part.text + (found.text if found else "")
        if self._inside or self._held:
            text += self._opened + self._held
        self._held = self._opened = ""
        return ReadPart(text, part.calls + (self._allowed(found.calls) if found else ()))

    def _before_call(self) -> str:
        """Text before the next call; afterwards the reader is inside it, or holds little."""
        places = [(self._held.find(marker), marker) for marker in self._form.opens]
        found = min((place for place in places if place[0] >= 0), default=None)
        begins = self._held.lstrip()
        if self._form.bare and not self._has_text and begins[:1] in ("{", "["):
            is_marker = any(begins.startswith(marker) for marker in self._form.opens)
            if not is_marker and not self._may_open(begins):
                self._inside = True
                return ""
        if found is not None:
            place, marker = found
            shown = self._held[:place]
            self._held = self._held[place + len(marker) :]
            self._opened, self._inside = marker, True
        else:
            kept = self._open_end()
            shown = self._held[: len(self._held) - kept]
            self._held = self._held[len(self._held) - kept :]
        if self._num_calls and not shown.strip():
            return ""  # white space between calls
        if not self._has_text and not shown.strip():
            self._held = ("" if self._inside else shown) + self._held
            return ""
        self._has_text = True
        return shown

    def _may_open(self, text: str) -> bool:
        return any(marker.startswith(text) for marker in self._form.opens)

    def _open_end(self) -> int:
        """How many characters at the end may be the beginning of a marker."""
        longest = max(map(len, self._form.opens), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if self._may_open(self._held[-size:]):
                return size
        return 0

    def _call(self, *, at_end: bool = False) -> ReadPart | None:
        """The call that is held, and what follows it is held; None while it is not whole."""
        named = _NAMED.match(self._held) if self._opened else None
        begin = named.end() if named else len(self._held) - len(self._held.lstrip())
        try:
            value, end = _DECODER.raw_decode(self._held, begin)
        except (ValueError, RecursionError):
            return None
        if named:
            value = {"name": named[1], "arguments": value}
        calls = self._read(value)
        raw, rest = self._held[:end], self._held[end:]
        if calls:
            rest = rest.lstrip(" \n\t;")
            if self._form.closes and self._opened:
                if not at_end and rest != self._form.closes and self._form.closes.startswith(rest):
                    return None  # the closing marker is on its way
                rest = rest.removeprefix(self._form.closes)
        text = "" if calls else self._opened + raw
        self._held, self._opened, self._inside = rest, "", False
        self._has_text = self._has_text or bool(text)
        self._num_calls += len(calls)
        return ReadPart(text, calls)

    def _read(self, value: Any) -> tuple[ToolCall, ...]:
        """The calls in a JSON value; empty unless all of it reads as calls of known tools."""
        entries = value if isinstance(value, list) else [value]
        calls: list[ToolCall] = []
        for entry in entries[: MAX_CALLS_READ + 1]:
            if not isinstance(entry, dict):
                return ()
            inner = entry.get("function")
            source = inner if isinstance(inner, dict) else entry
            name = source.get("name")
            arguments = source.get("arguments", source.get("parameters", {}))
            if not isinstance(name, str) or name not in self._names:
                return ()
            if not isinstance(arguments, dict):
                return ()
            calls.append(ToolCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False)))
        return tuple(calls)

    def _allowed(self, calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
        kept = tuple(calls[: self._most])
        self._most -= len(kept)
        return kept
