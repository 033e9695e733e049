"""The objects of /v1/responses: one response, or the events from which a client builds it.

The order of events is that of OpenAI's API: an item is added, its part is added, deltas come, and
part and item are done. A call of a tool is found whole, so its arguments come in one delta.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from decoding.scores import TokenScore
from edge.api.answers import FINISH_REASONS, costs
from edge.api.asked import ApiRequest
from edge.api.choices import ChoiceDelta
from edge.api.errors import ApiError
from edge.api.logprobs import PromptEcho, chat_logprobs_of
from edge.api.shape import EVENT_STREAM, AnswerSource, Choice, server_sent
from edge.api.tool_calls.reader import ToolCall
from edge.generation.completion import TextPiece
from edge.generation.report import Completion


class ResponseShape:
    """The shape of one response; see `edge.api.shape.AnswerShape`. It has one choice."""

    def __init__(self, asked: ApiRequest, source: AnswerSource) -> None:
        self._source = source
        self._repeated = asked.repeated
        self._with_logprobs = asked.completion.sampling.logprobs
        self._id = _new_id("resp")
        self._created = int(time.time())
        self._num_events = 0
        self._done: list[dict[str, Any]] = []  # items
        self._message: _MessageItem | None = None  # the one that is under way

    @property
    def media_type(self) -> str:
        """Server-sent events."""
        return EVENT_STREAM

    @property
    def last_text(self) -> str:
        """Nothing: the last event says that it is the last."""
        return ""

    def encoded(self, event: dict[str, Any]) -> str:
        """An event with its type as its name."""
        return server_sent(event, event["type"])

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The response."""
        (choice,) = choices
        status = _status_of(choice.completion)
        items = []
        if choice.text or not choice.calls:
            message = _MessageItem(choice.text, self._logprobs(choice.pieces))
            items.append(message.to_json(status))
        items += [_call_item(call) for call in choice.calls]
        return self._response(status, items, choice.completion)

    def begin(
        self, index: int, echo: PromptEcho | None, scores: Sequence[TokenScore | None]
    ) -> Iterator[dict[str, Any]]:
        """The response as it is before its first token."""
        for kind in ("created", "in_progress"):
            yield self._event(kind, response=self._response("in_progress", ()))

    def go_on(self, index: int, delta: ChoiceDelta, offset: int) -> Iterator[dict[str, Any]]:
        """Text is added to the message; a call is an item, which ends the message before it."""
        logprobs = self._logprobs(delta.pieces)
        if delta.text or (logprobs and self._message is not None):
            yield from self._more(delta.text, logprobs)
        for call in delta.calls:
            yield from self._end_message("completed")
            yield from self._whole_call(call)

    def end(
        self, index: int, completion: Completion, *, has_calls: bool
    ) -> Iterator[dict[str, Any]]:
        """The message is done, and the response."""
        status = _status_of(completion)
        if not self._done and self._message is None:
            yield from self._begin_message()
        yield from self._end_message(status)
        yield self._event(status, response=self._response(status, self._done, completion))

    def close(self, completions: Sequence[Completion]) -> Iterator[dict[str, Any]]:
        """Nothing: there is one choice."""
        yield from ()

    def failed(self, error: ApiError) -> Iterator[dict[str, Any]]:
        """The response with the error in it."""
        response = self._response("failed", self._done)
        response["error"] = {"code": error.code or error.kind, "message": str(error)}
        yield self._event("failed", response=response)

    def _more(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        yield from self._begin_message()
        if self._message is not None:
            self._message.add(text, logprobs)
            yield self._part_event("output_text.delta", delta=text, logprobs=logprobs)

    def _begin_message(self) -> Iterator[dict[str, Any]]:
        if self._message is not None:
            return
        self._message = _MessageItem()
        item = {**self._message.to_json("in_progress"), "content": []}
        yield self._event("output_item.added", output_index=len(self._done), item=item)
        yield self._part_event("content_part.added", part=self._message.part())

    def _end_message(self, status: str) -> Iterator[dict[str, Any]]:
        message = self._message
        if message is None:
            return
        part = message.part()
        yield self._part_event("output_text.done", text=part["text"], logprobs=part["logprobs"])
        yield self._part_event("content_part.done", part=part)
        self._message = None
        yield self._item_done(message.to_json(status))

    def _whole_call(self, call: ToolCall) -> Iterator[dict[str, Any]]:
        item = _call_item(call)
        place = {"item_id": item["id"], "output_index": len(self._done)}
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield self._event("output_item.added", output_index=len(self._done), item=begun)
        yield self._event("function_call_arguments.delta", delta=call.arguments, **place)
        yield self._event(
            "function_call_arguments.done", name=call.name, arguments=call.arguments, **place
        )
        yield self._item_done(item)

    def _item_done(self, item: dict[str, Any]) -> dict[str, Any]:
        self._done.append(item)
        return self._event("output_item.done", output_index=len(self._done) - 1, item=item)

    def _part_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Of the message that is under way."""
        item_id = "" if self._message is None else self._message.id
        place = {"item_id": item_id, "output_index": len(self._done), "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        number = self._num_events
        self._num_events += 1
        return {"type": f"response.{kind}", "sequence_number": number, **fields}

    def _logprobs(self, pieces: Sequence[TextPiece]) -> list[dict[str, Any]]:
        if not self._with_logprobs:
            return []
        told: list[dict[str, Any]] = chat_logprobs_of(pieces, self._source.text_of)["content"]
        return told

    def _response(
        self,
        status: str,
        items: Sequence[Mapping[str, Any]],
        completion: Completion | None = None,
    ) -> dict[str, Any]:
        response = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "model": self._source.model,
            "status": status,
            "error": None,
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            "output": list(items),
            "usage": None if completion is None else _usage(completion),
            **self._repeated,
            "background": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "truncation": "disabled",
        }
        return response if completion is None else {**response, "splitpoint": costs([completion])}


class _MessageItem:
    """An item with one part of text."""

    def __init__(self, text: str = "", logprobs: Sequence[dict[str, Any]] = ()) -> None:
        self.id = _new_id("msg")
        self._texts = [text]
        self._logprobs = list(logprobs)

    def add(self, text: str, logprobs: Sequence[dict[str, Any]]) -> None:
        self._texts.append(text)
        self._logprobs += logprobs

    def part(self) -> dict[str, Any]:
        text = "".join(self._texts)
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": list(self._logprobs),
        }

    def to_json(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [self.part()],
        }


def _call_item(call: ToolCall) -> dict[str, Any]:
    return {
        "id": _new_id("fc"),
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def _status_of(completion: Completion) -> str:
    is_whole = FINISH_REASONS[completion.finish_reason] == "stop"
    return "completed" if is_whole else "incomplete"


def _usage(completion: Completion) -> dict[str, Any]:
    num_prompt, num_new = completion.num_prompt_tokens, len(completion.token_ids)
    return {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": num_new,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_prompt + num_new,
    }


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"
