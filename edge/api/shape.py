"""What an endpoint's answers look like: one interface, and one class for each API behind it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from decoding.scores import TokenScore
from edge.api.choices import ChoiceDelta
from edge.api.errors import ApiError
from edge.api.logprobs import PromptEcho, TokenText
from edge.api.tool_calls.reader import ToolCall
from edge.generation.completion import TextPiece
from edge.generation.report import Completion

EVENT_STREAM: Final = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One whole answer of a request. echo: the prompt, when it stands before the answer."""

    completion: Completion
    text: str
    pieces: Sequence[TextPiece] = ()
    calls: Sequence[ToolCall] = ()
    echo: PromptEcho | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSource:
    """Who answers. model: its id. fingerprint: of model and split. text_of: what a token is."""

    model: str
    fingerprint: str
    text_of: TokenText


class AnswerShape(Protocol):
    """The JSON objects of one request's answer. A request has a shape of its own.

    A stream's choices come one after another: each begins, goes on, and ends. `close` follows the
    last one, or `failed` comes instead of what is left. Each method gives the objects to send.
    """

    @property
    def media_type(self) -> str:
        """Of a stream."""

    @property
    def last_text(self) -> str:
        """What ends every stream, whole or broken off."""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The answer to a request that wants no stream."""

    def begin(
        self, index: int, echo: PromptEcho | None, scores: Sequence[TokenScore | None]
    ) -> Iterable[dict[str, Any]]:
        """A choice begins. scores: of the echo's tokens."""

    def go_on(self, index: int, delta: ChoiceDelta, offset: int) -> Iterable[dict[str, Any]]:
        """What is new, perhaps nothing. offset: characters before the answer."""

    def end(
        self, index: int, completion: Completion, *, has_calls: bool
    ) -> Iterable[dict[str, Any]]:
        """A choice has ended, after the last of its text."""

    def close(self, completions: Sequence[Completion]) -> Iterable[dict[str, Any]]:
        """All choices have ended."""

    def failed(self, error: ApiError) -> Iterable[dict[str, Any]]:
        """The stream breaks off."""

    def encoded(self, event: dict[str, Any]) -> str:
        """One object as a stream has it."""


def server_sent(event: dict[str, Any], name: str | None = None) -> str:
    """An object as a server-sent event. name: the event's type, where the API has one."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(event)}\n\n"
