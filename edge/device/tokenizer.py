"""Text to tokens and back on the device: `tokenizers` for the ids, jinja2 for the chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

import jinja2
import jinja2.sandbox
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from edge.errors import EdgeError, InputError
from optimizer.artifacts.bundle import EdgeSettings


class ChatMessage(TypedDict):
    """One turn: role is "system", "user" or "assistant"."""

    role: str
    content: str


class ChatTokenizer:
    """The bundle's tokenizer with its chat template.

    tokenizer_path: a `tokenizers` JSON file. template: jinja2 source as Hugging Face models
    carry it (None: the model has none, and `encode_chat` refuses). It comes with the bundle,
    whose hash is checked, and still runs in jinja2's sandbox.
    """

    def __init__(self, tokenizer_path: Path, template: str | None, settings: EdgeSettings) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_path))
        except Exception as error:  # `tokenizers` raises bare Exception
            raise EdgeError(f"{tokenizer_path}: not a readable tokenizer ({error})") from error
        self._settings = settings
        self._template = None if template is None else _environment().from_string(template)

    @property
    def vocab_size(self) -> int:
        """How many token ids there are."""
        return self._tokenizer.get_vocab_size()

    def longest_token_bytes(self, num_ids: int) -> int:
        """An upper bound on the bytes of text that one of the ids below `num_ids` stands for."""
        tokens = map(self._tokenizer.id_to_token, range(num_ids))
        return max((len(token.encode()) for token in tokens if token), default=1)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens the model expects around it."""
        return token_ids(self._tokenizer, text)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a conversation, ending where the assistant has to speak."""
        return token_ids(self._tokenizer, self.render(messages), add_special_tokens=False)

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as the model was trained to read it."""
        if self._template is None:
            raise InputError("this model has no chat template: give a plain prompt")
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=True,
                bos_token=self._settings.bos_token or "",
                eos_token=self._settings.eos_token or "",
            )
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template refuses this conversation: {error}") from error

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of tokens, special tokens left out."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        """One token as text, special or not; bytes that are no whole character as U+FFFD."""
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def stream(self) -> TextStream:
        """A decoder for one generation's tokens, one at a time."""
        return TextStream(self._tokenizer)


def token_ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of `text`. Other threads run meanwhile: `encode` alone would keep Python's lock."""
    return tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


class TextStream:
    """Tokens to text one at a time; text appears once its last byte is there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is still in pieces."""
        return self._stream.step(self._tokenizer, token_id) or ""


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    return environment
