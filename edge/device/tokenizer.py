"""Text to tokens and back on the device: `tokenizers` for the ids, jinja2 for the chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

import jinja2
import jinja2.sandbox
from tokenizers import Tokenizer

from edge.device.detokenizer import Detokenizer, TextStream
from edge.errors import EdgeError, InputError
from edge.text_input import utf8_path
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
            self._tokenizer = Tokenizer.from_file(utf8_path(tokenizer_path))
        except InputError:
            raise
        except Exception as error:  # `tokenizers` raises bare Exception
            raise EdgeError(f"{tokenizer_path}: not a readable tokenizer ({error})") from error
        self._detokenizer = Detokenizer(self._tokenizer)
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
        return self._detokenizer.decode(token_ids)

    def stream(self, prompt_ids: Sequence[int] = ()) -> TextStream:
        """A decoder for one generation's tokens, one at a time, which follow `prompt_ids`."""
        return self._detokenizer.stream(prompt_ids)


def token_ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of `text`. Other threads run meanwhile: `encode` alone would keep Python's lock."""
    return tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    return environment
