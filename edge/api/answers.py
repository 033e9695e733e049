"""Response objects of the OpenAI API: whole answers, stream chunks, usage, log-probabilities."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

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
    """Makes the objects of one answer; holds what they share. `fingerprint`: of model and split."""

    model: str
    fingerprint: str
    is_chat: bool
    with_logprobs: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, completion: Completion, pieces: Sequence[TextPiece]) -> dict[str, Any]:
        """The answer to a request without `stream`. pieces: all of them."""
        choice: dict[str, Any] = {
            "index": 0,
            "logprobs": self._logprobs(pieces),
            "finish_reason": FINISH_REASONS[completion.finish_reason],
        }
        if self.is_chat:
            choice["message"] = {"role": "assistant", "content": completion.text, "refusal": None}
        else:
            choice["text"] = completion.text
        return {
            **self._head("chat.completion" if self.is_chat else "text_completion"),
            "choices": [choice],
            "usage": usage(completion),
            "splitpoint": costs(completion),
        }

    def first_chunk(self) -> dict[str, Any] | None:
        """The first chunk of a chat's stream: who speaks. None for a plain completion."""
        return self._chunk({"role": "assistant", "content": ""}) if self.is_chat else None

    def chunk(self, text: str, pieces: Sequence[TextPiece]) -> dict[str, Any]:
        """Text that can be shown, and the tokens it came with."""
        delta = {"content": text} if self.is_chat else {"text": text}
        return self._chunk(delta, logprobs=self._logprobs(pieces))

    def last_chunk(self, completion: Completion) -> dict[str, Any]:
        """The chunk that says how the answer ended."""
        delta: dict[str, Any] = {} if self.is_chat else {"text": ""}
        return self._chunk(delta, finish_reason=FINISH_REASONS[completion.finish_reason])

    def usage_chunk(self, completion: Completion) -> dict[str, Any]:
        """The chunk that `stream_options.include_usage` asks for: no choice, the counts."""
        return {
            **self._head(self._chunk_object),
            "choices": [],
            "usage": usage(completion),
            "splitpoint": costs(completion),
        }

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _chunk(
        self,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        content = {"delta": delta} if self.is_chat else delta
        choice = {"index": 0, **content, "logprobs": logprobs, "finish_reason": finish_reason}
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

    def _logprobs(self, pieces: Sequence[TextPiece]) -> dict[str, Any] | None:
        """The chosen tokens' log-probabilities, in the shape of either endpoint.

        A token that is a part of a character has no text of its own. Its last part has the
        character. `bytes` are the token's own; a special token, which is not in the text, has none.
        """
        if not self.with_logprobs or not pieces:
            return None
        if self.is_chat:
            content = [
                {
                    "token": piece.token,
                    "logprob": piece.logprob,
                    "bytes": list(piece.token_bytes),
                    "top_logprobs": [],
                }
                for piece in pieces
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [piece.token for piece in pieces],
            "token_logprobs": [piece.logprob for piece in pieces],
            "top_logprobs": None,
            "text_offset": [piece.offset for piece in pieces],
        }


def usage(completion: Completion) -> dict[str, Any]:
    """OpenAI's token counts."""
    num_new = len(completion.token_ids)
    return {
        "prompt_tokens": completion.num_prompt_tokens,
        "completion_tokens": num_new,
        "total_tokens": completion.num_prompt_tokens + num_new,
    }


def costs(completion: Completion) -> dict[str, Any]:
    """Ours, beside OpenAI's fields: how it really ended, and what the split cost."""
    figures = completion.to_json()
    names = (
        "finish_reason",
        "finish_detail",
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
