"""Response objects of the OpenAI API: whole answers, stream chunks, usage, log-probabilities."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from decoding.scores import TokenScore
from edge.api.asked import ApiRequest
from edge.api.choices import ChoiceDelta
from edge.api.errors import ApiError
from edge.api.logprobs import (
    PromptEcho,
    TokenText,
    chat_logprobs_of,
    completion_logprobs_of,
    echo_logprobs_of,
    joined,
)
from edge.api.shape import EVENT_STREAM, AnswerSource, Choice, server_sent
from edge.device.detokenizer import DecodedToken
from edge.generation.completion import TextPiece
from edge.generation.report import Completion
from edge.generation.stopping import FinishReason

# The reasons that OpenAI's clients know. A missed deadline cuts the answer short, which is what
# "length" says. The `splitpoint` object of the answer names the real reason.
FINISH_REASONS: Final[dict[FinishReason, str]] = {
    "stop": "stop",
    "length": "length",
    "deadline": "length",
    "cancelled": "length",
    "server_lost": "length",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """The shape of chats and completions; see `edge.api.shape.AnswerShape`.

    fingerprint: of model and split. with_top: the likely tokens beside each token are asked for.
    num_choices: answers to each prompt. include_usage: a stream's last object has the token counts.
    text_of: what a token stands for.
    """

    model: str
    fingerprint: str
    is_chat: bool
    with_logprobs: bool
    with_top: bool = False
    num_choices: int = 1
    include_usage: bool = False
    text_of: TokenText = lambda token_id: DecodedToken("", "", b"")
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, asked: ApiRequest, source: AnswerSource, *, is_chat: bool) -> AnswerFormat:
        """The shape of a request's answer."""
        sampling = asked.completion.sampling
        return cls(
            model=source.model,
            fingerprint=source.fingerprint,
            is_chat=is_chat,
            with_logprobs=sampling.logprobs,
            with_top=sampling.top_logprobs > 0,
            num_choices=asked.num_choices,
            include_usage=asked.include_usage,
            text_of=source.text_of,
        )

    @property
    def media_type(self) -> str:
        """Server-sent events."""
        return EVENT_STREAM

    @property
    def last_text(self) -> str:
        """OpenAI's mark."""
        return "data: [DONE]\n\n"

    def encoded(self, event: dict[str, Any]) -> str:
        """An event without a name."""
        return server_sent(event)

    def begin(
        self, index: int, echo: PromptEcho | None, scores: Sequence[TokenScore | None]
    ) -> Iterator[dict[str, Any]]:
        """Who speaks, and the prompt where it is asked for."""
        opening = self.first_chunk(index)
        if opening is not None:
            yield opening
        if echo is not None:
            yield self.echo_chunk(index, echo, scores)

    def go_on(self, index: int, delta: ChoiceDelta, offset: int) -> Iterator[dict[str, Any]]:
        """Text, calls, and log-probabilities also where they come without either."""
        if not delta.is_empty or (delta.pieces and self.with_logprobs):
            yield self.chunk(index, delta, offset)

    def end(
        self, index: int, completion: Completion, *, has_calls: bool
    ) -> Iterator[dict[str, Any]]:
        """The reason."""
        yield self.last_chunk(completion, index, has_calls=has_calls)

    def close(self, completions: Sequence[Completion]) -> Iterator[dict[str, Any]]:
        """The token counts where they are asked for."""
        if self.include_usage:
            yield self.usage_chunk(completions)

    def failed(self, error: ApiError) -> Iterator[dict[str, Any]]:
        """The error's object."""
        yield error.body

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        completions = [choice.completion for choice in choices]
        return {
            **self._head("chat.completion" if self.is_chat else "text_completion"),
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage(completions, self.num_choices),
            "splitpoint": costs(completions),
        }

    def first_chunk(self, index: int = 0) -> dict[str, Any] | None:
        """The first chunk of a chat's stream: who speaks. None for a plain completion."""
        return self._chunk(index, {"role": "assistant", "content": ""}) if self.is_chat else None

    def echo_chunk(
        self, index: int, echo: PromptEcho, scores: Sequence[TokenScore | None]
    ) -> dict[str, Any]:
        """The prompt, before its answer. scores: of its tokens."""
        told = self._echo_logprobs(echo, scores) if self.with_logprobs else None
        return self._chunk(index, {"text": echo.text}, logprobs=told)

    def chunk(self, index: int, delta: ChoiceDelta, offset: int = 0) -> dict[str, Any]:
        """What can be shown, and the tokens it came with. offset: characters before the answer."""
        content: dict[str, Any] = {"content" if self.is_chat else "text": delta.text}
        if delta.calls:
            content["tool_calls"] = [
                {"index": delta.first_call + place, **call.to_json()}
                for place, call in enumerate(delta.calls)
            ]
            if not delta.text:
                del content["content"]
        return self._chunk(index, content, logprobs=self._logprobs(delta.pieces, offset))

    def last_chunk(
        self, completion: Completion, index: int = 0, *, has_calls: bool = False
    ) -> dict[str, Any]:
        """The chunk that says how the answer ended."""
        delta: dict[str, Any] = {} if self.is_chat else {"text": ""}
        return self._chunk(index, delta, finish_reason=_finish_reason(completion, has_calls))

    def usage_chunk(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The chunk that `stream_options.include_usage` asks for: no choice, the counts."""
        return {
            **self._head(self._chunk_object),
            "choices": [],
            "usage": usage(completions, self.num_choices),
            "splitpoint": costs(completions),
        }

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        completion, echo = choice.completion, choice.echo
        told = self._logprobs(choice.pieces, 0 if echo is None else len(echo.text))
        if echo is not None and self.with_logprobs:
            before = self._echo_logprobs(echo, completion.prompt_logprobs)
            told = before if told is None else joined(before, told)
        made: dict[str, Any] = {
            "index": index,
            "logprobs": told,
            "finish_reason": _finish_reason(completion, bool(choice.calls)),
        }
        if not self.is_chat:
            made["text"] = choice.text if echo is None else echo.text + choice.text
            return made
        content = None if choice.calls and not choice.text else choice.text
        made["message"] = {"role": "assistant", "content": content, "refusal": None}
        if choice.calls:
            made["message"]["tool_calls"] = [call.to_json() for call in choice.calls]
        return made

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        content = {"delta": delta} if self.is_chat else delta
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head(self._chunk_object), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _logprobs(self, pieces: Sequence[TextPiece], offset: int) -> dict[str, Any] | None:
        """The tokens' log-probabilities, in the shape of either endpoint."""
        if not self.with_logprobs or not pieces:
            return None
        if self.is_chat:
            return chat_logprobs_of(pieces, self.text_of)
        return completion_logprobs_of(pieces, self.text_of, with_top=self.with_top, offset=offset)

    def _echo_logprobs(
        self, echo: PromptEcho, scores: Sequence[TokenScore | None]
    ) -> dict[str, Any]:
        scores = scores or (None,)  # a prompt of one token has nothing to score
        if len(scores) != len(echo.tokens):
            raise ApiError(
                f"the cloud server scored {len(scores)} of {len(echo.tokens)} prompt tokens",
                status=502,
                kind="server_error",
                code="server_unusable",
            )
        return echo_logprobs_of(echo, scores, self.text_of, with_top=self.with_top)


def _finish_reason(completion: Completion, has_calls: bool) -> str:
    reason = FINISH_REASONS[completion.finish_reason]
    return "tool_calls" if has_calls and reason == "stop" else reason


def usage(completions: Sequence[Completion], num_choices: int = 1) -> dict[str, Any]:
    """OpenAI's token counts; a prompt counts once, however many choices it has."""
    num_prompt = sum(one.num_prompt_tokens for one in completions[::num_choices])
    num_new = sum(len(one.token_ids) for one in completions)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
    }


def costs(completions: Sequence[Completion]) -> dict[str, Any]:
    """Ours, beside OpenAI's fields: how it really ended, and what the split cost.

    Of several answers: a list `choices`, one entry each.
    """
    each = [_costs_of(completion) for completion in completions]
    return each[0] if len(each) == 1 else {"choices": each}


def _costs_of(completion: Completion) -> dict[str, Any]:
    figures = completion.to_json()
    names = (
        "finish_reason",
        "finish_detail",
        "answered_by",
        "ttft_s",
        "tbt_p50_s",
        "tbt_p95_s",
        "uplink_bytes",
        "downlink_bytes",
        "bits_per_element",
        "round_trips",
        "reconnects",
        "level_counts",
    )
    return {name: figures[name] for name in names}
