"""Text to tokens and back on the device: `tokenizers` for the ids, the model's chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from tokenizers import Tokenizer

from edge.device.control_tokens import ControlTokens
from edge.device.detokenizer import Detokenizer, TextStream
from edge.device.token_ids import token_ids
from edge.errors import EdgeError, InputError
from edge.text_input import utf8_path
from optimizer.artifacts.chat_template import ChatTemplate
from optimizer.artifacts.edge_settings import EdgeSettings
from optimizer.errors import ChatTemplateError


class _Turn(TypedDict):
    role: str
    content: str


class ChatMessage(_Turn, total=False):
    """One turn: role is "system", "user", "assistant" or "tool".

    tool_calls: of the assistant, each with a function's name and its arguments as an object.
    tool_call_id, name: of a tool's answer, which call and which tool it belongs to.
    """

    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    name: str


class ChatTokenizer:
    """The bundle's tokenizer with its chat template.

    tokenizer_path: a `tokenizers` JSON file. template: jinja2 source as Hugging Face models
    carry it (None: the model has none). It comes with the bundle, whose hash is checked, and still
    runs in a sandbox with limits. Without a template, or with one that cannot be parsed,
    `encode_chat` refuses and plain text works. allow_control_tokens: texts of control tokens in a
    message are control tokens (else they are plain text; see `edge.device.control_tokens`).
    """

    def __init__(
        self,
        tokenizer_path: Path,
        template: str | None,
        settings: EdgeSettings,
        *,
        allow_control_tokens: bool = False,
    ) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(utf8_path(tokenizer_path))
        except InputError:
            raise
        except Exception as error:  # `tokenizers` raises bare Exception
            raise EdgeError(f"{tokenizer_path}: not a readable tokenizer ({error})") from error
        self._detokenizer = Detokenizer(self._tokenizer)
        self._settings = settings
        self._template, self._no_template = _parsed(template)
        self.template = template or ""
        self._control: ControlTokens | None = None
        if self._template is not None and not allow_control_tokens:
            self._control = ControlTokens(self._tokenizer, self._template.literals)

    @property
    def vocab_size(self) -> int:
        """How many token ids there are."""
        return self._tokenizer.get_vocab_size()

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template that can be used."""
        return self._template is not None

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template has a place for tools."""
        return self._template is not None and self._template.knows_tools

    def longest_token_bytes(self, num_ids: int) -> int:
        """An upper bound on the bytes of text that one of the ids below `num_ids` stands for."""
        tokens = map(self._tokenizer.id_to_token, range(num_ids))
        return max((len(token.encode()) for token in tokens if token), default=1)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens the model expects around it."""
        return token_ids(self._tokenizer, text)

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, ending where the assistant has to speak.

        tools: JSON schemas of functions that the model may call. InputError without a chat
        template, for tools that the template does not know, and for a conversation that it refuses.
        """
        if tools and self.has_template and not self.knows_tools:
            raise InputError("tools: this model's chat template knows none")
        if self._control is None:
            text = self.render(messages, tools)
            return token_ids(self._tokenizer, text, add_special_tokens=False)
        self._control.check_names(([turn.get("tool_calls") for turn in messages], tools))
        given = ({"messages": list(messages), "tools": None if tools is None else list(tools)},)
        return self._control.encode_chat(
            given, lambda marked: self.render(marked[0]["messages"], marked[0]["tools"])
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The conversation as the model was trained to read it. InputError as `encode_chat`."""
        if self._template is None:
            raise InputError(f"{self._no_template}: give a plain prompt")
        tokens = {
            **self._settings.special_tokens,
            "bos_token": self._settings.bos_token or "",
            "eos_token": self._settings.eos_token or "",
        }
        try:
            return self._template.render(messages, tokens, tools=tools)
        except ChatTemplateError as error:
            raise InputError(
                f"the chat template (chat_template.jinja) refuses this conversation: {error}"
            ) from error

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of tokens, special tokens left out."""
        return self._detokenizer.decode(token_ids)

    def stream(self, prompt_ids: Sequence[int] = ()) -> TextStream:
        """A decoder for one generation's tokens, one at a time, which follow `prompt_ids`."""
        return self._detokenizer.stream(prompt_ids)


def _parsed(template: str | None) -> tuple[ChatTemplate | None, str]:
    """The template, or why there is none."""
    if template is None:
        return None, "this model has no chat template"
    try:
        return ChatTemplate(template), ""
    except ChatTemplateError as error:
        return None, f"this model's chat template (chat_template.jinja) does not work: {error}"
