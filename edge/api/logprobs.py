"""Log-probabilities in the shapes of the two endpoints, for answers and for echoed prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from decoding.scores import TokenScore, TopToken
from edge.device.detokenizer import DecodedToken
from edge.generation.completion import TextPiece

TokenText: TypeAlias = Callable[[int], DecodedToken]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEcho:
    """A prompt as it stands before its answer: its text, and its tokens for log-probabilities."""

    text: str
    tokens: tuple[DecodedToken, ...] = ()


def chat_logprobs_of(pieces: Sequence[TextPiece], text_of: TokenText) -> dict[str, Any]:
    """A chat's object.

    A token that is a part of a character has no text of its own. Its last part has the character.
    `bytes` are the token's own; a special token, which is not in the text, has none.
    """
    content = [
        {
            "token": piece.token,
            "logprob": piece.logprob,
            "bytes": list(piece.token_bytes),
            "top_logprobs": [_top_entry(top, text_of) for top in piece.top_logprobs],
        }
        for piece in pieces
    ]
    return {"content": content, "refusal": None}


def completion_logprobs_of(
    pieces: Sequence[TextPiece], text_of: TokenText, *, with_top: bool, offset: int = 0
) -> dict[str, Any]:
    """A completion's object. offset: characters of text before the answer."""
    return {
        "tokens": [piece.token for piece in pieces],
        "token_logprobs": [piece.logprob for piece in pieces],
        "top_logprobs": (
            [_by_text(piece.top_logprobs, text_of) for piece in pieces] if with_top else None
        ),
        "text_offset": [offset + piece.offset for piece in pieces],
    }


def echo_logprobs_of(
    echo: PromptEcho,
    scores: Sequence[TokenScore | None],
    text_of: TokenText,
    *,
    with_top: bool,
) -> dict[str, Any]:
    """The prompt's part of a completion's object. scores: one a token; nothing for the first."""
    offsets = [0]
    for token in echo.tokens:
        offsets.append(offsets[-1] + len(token.text))
    tops = [None if score is None else _by_text(score.top, text_of) for score in scores]
    return {
        "tokens": [token.token for token in echo.tokens],
        "token_logprobs": [None if score is None else score.logprob for score in scores],
        "top_logprobs": tops if with_top else None,
        "text_offset": offsets[: len(echo.tokens)],
    }


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """One completion's object from two parts, in this order."""
    return {
        name: None if value is None else [*value, *second[name]] for name, value in first.items()
    }


def _top_entry(top: TopToken, text_of: TokenText) -> dict[str, Any]:
    token = text_of(top.token_id)
    return {"token": token.token, "logprob": top.logprob, "bytes": list(token.data)}


def _by_text(tops: Sequence[TopToken], text_of: TokenText) -> dict[str, float]:
    """By the token's text; of tokens with the same text the likeliest one."""
    found: dict[str, float] = {}
    for top in tops:
        token = text_of(top.token_id)
        text = token.token or "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)
        found.setdefault(text, top.logprob)
    return found
