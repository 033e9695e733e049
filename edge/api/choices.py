"""From a choice's pieces to what its client gets: text, tool calls, and the tokens beside them."""

from __future__ import annotations

from dataclasses import dataclass

from edge.api.tool_calls.reader import ReadPart, ToolCall, ToolCallReader
from edge.generation.completion import TextPiece


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceDelta:
    """What is new in a choice. first_call: how many calls came before these."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    first_call: int = 0
    pieces: tuple[TextPiece, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is neither text nor a call."""
        return not self.text and not self.calls


class ChoiceReader:
    """One choice. tool_calls: finds calls in its text; None where no tool may be called."""

    def __init__(self, tool_calls: ToolCallReader | None = None) -> None:
        self._tool_calls = tool_calls
        self._num_chars = 0
        self._num_calls = 0
        self._waiting: list[TextPiece] = []  # tokens whose text is held back

    @property
    def has_calls(self) -> bool:
        """Whether a tool was called."""
        return self._num_calls > 0

    def push(self, piece: TextPiece) -> ChoiceDelta:
        """Take the next piece."""
        self._waiting.append(piece)
        self._num_chars += len(piece.text)
        if self._tool_calls is None:
            return self._delta(ReadPart(piece.text, ()))
        marker = "" if piece.token_bytes else piece.token
        known = marker if marker in self._tool_calls.markers else ""
        return self._delta(self._tool_calls.push(piece.text + known))

    def end(self, text: str) -> ChoiceDelta:
        """What is left at the end. text: all of the answer's."""
        left = text[self._num_chars :]
        part = ReadPart(left, ())
        if self._tool_calls is not None:
            first, last = self._tool_calls.push(left), self._tool_calls.flush()
            part = ReadPart(first.text + last.text, first.calls + last.calls)
        return self._delta(part, is_last=True)

    def _delta(self, part: ReadPart, *, is_last: bool = False) -> ChoiceDelta:
        if not part.text and not part.calls and not is_last:
            return ChoiceDelta()
        pieces, self._waiting = tuple(self._waiting), []
        first_call = self._num_calls
        self._num_calls += len(part.calls)
        return ChoiceDelta(text=part.text, calls=part.calls, first_call=first_call, pieces=pieces)
