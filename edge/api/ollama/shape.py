"""The objects of /api/chat and /api/generate: one a line, or one whole.

The last one says why the answer ended, and has the counts and the times in nanoseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any, Final

from decoding.scores import TokenScore
from edge.api.answers import FINISH_REASONS, costs
from edge.api.asked import ApiRequest
from edge.api.choices import ChoiceDelta
from edge.api.errors import ApiError
from edge.api.logprobs import PromptEcho, chat_logprobs_of
from edge.api.shape import AnswerSource, Choice
from edge.api.tool_calls.reader import ToolCall
from edge.generation.completion import TextPiece
from edge.generation.report import Completion

NDJSON: Final = "application/x-ndjson"
NS_PER_S: Final = 1_000_000_000


class OllamaShape:
    """See `edge.api.shape.AnswerShape`. An answer has one choice, or none: the model is loaded."""

    def __init__(self, asked: ApiRequest, source: AnswerSource, *, is_chat: bool) -> None:
        self._source = source
        self._is_chat = is_chat
        self._with_logprobs = asked.completion.sampling.logprobs

    @property
    def media_type(self) -> str:
        """JSON, one object a line."""
        return NDJSON

    @property
    def last_text(self) -> str:
        """Nothing: the last object says that it is the last."""
        return ""

    def encoded(self, event: dict[str, Any]) -> str:
        """One line."""
        return f"{json.dumps(event)}\n"

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The text or the calls, and the figures."""
        if not choices:
            return self._loaded()
        (choice,) = choices
        made = self._piece(choice.text, choice.calls, choice.pieces)
        return {**made, **_figures(choice.completion)}

    def begin(
        self, index: int, echo: PromptEcho | None, scores: Sequence[TokenScore | None]
    ) -> Iterator[dict[str, Any]]:
        """Nothing: every object says who speaks."""
        yield from ()

    def go_on(self, index: int, delta: ChoiceDelta, offset: int) -> Iterator[dict[str, Any]]:
        """Text, calls, and log-probabilities also where they come without either."""
        if not delta.is_empty or (delta.pieces and self._with_logprobs):
            yield self._piece(delta.text, delta.calls, delta.pieces)

    def end(
        self, index: int, completion: Completion, *, has_calls: bool
    ) -> Iterator[dict[str, Any]]:
        """The figures."""
        yield {**self._piece(""), **_figures(completion)}

    def close(self, completions: Sequence[Completion]) -> Iterator[dict[str, Any]]:
        """The answer to a request without a prompt."""
        if not completions:
            yield self._loaded()

    def failed(self, error: ApiError) -> Iterator[dict[str, Any]]:
        """The error's text."""
        yield error_body(error)

    def _loaded(self) -> dict[str, Any]:
        return {**self._piece(""), "done": True, "done_reason": "load"}

    def _piece(
        self, text: str, calls: Sequence[ToolCall] = (), pieces: Sequence[TextPiece] = ()
    ) -> dict[str, Any]:
        made: dict[str, Any] = {"model": self._source.model, "created_at": timestamp()}
        if self._is_chat:
            made["message"] = {"role": "assistant", "content": text}
            if calls:
                made["message"]["tool_calls"] = [_call(call) for call in calls]
        else:
            made["response"] = text
        if self._with_logprobs and pieces:
            made["logprobs"] = chat_logprobs_of(pieces, self._source.text_of)["content"]
        return {**made, "done": False}


def error_body(error: ApiError) -> dict[str, Any]:
    """An error as Ollama's clients read it."""
    return {"error": error.body["error"]["message"]}


def timestamp(at: datetime | None = None) -> str:
    """A time, or now, in RFC 3339 and UTC."""
    return (at or datetime.now(timezone.utc)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _call(call: ToolCall) -> dict[str, Any]:
    return {"function": {"name": call.name, "arguments": json.loads(call.arguments)}}


def _figures(completion: Completion) -> dict[str, Any]:
    return {
        "done": True,
        "done_reason": FINISH_REASONS[completion.finish_reason],
        "total_duration": round(NS_PER_S * completion.total_s),
        "load_duration": 0,
        "prompt_eval_count": completion.num_prompt_tokens,
        "prompt_eval_duration": round(NS_PER_S * completion.ttft_s),
        "eval_count": len(completion.token_ids),
        "eval_duration": round(NS_PER_S * max(completion.total_s - completion.ttft_s, 0.0)),
        "splitpoint": costs([completion]),
    }
