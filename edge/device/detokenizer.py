"""From token ids to bytes to text: one token at a time, for any sequence of ids.

A token stands for bytes, and the text is those bytes read as UTF-8. So text appears once the last
byte of a character is there, and bytes that are no UTF-8 become U+FFFD, as in WHATWG's decoder.
What bytes a token stands for is in `edge.device.token_bytes`. A tokenizer that is not known there
is left to `tokenizers` itself, on a window of the last tokens.

For a prompt that ends with a whole character, prompt and answer are together what `tokenizers`
decodes from all ids. One case differs: for a run of byte tokens that is not UTF-8 as a whole,
`tokenizers` takes back the characters that were complete, and a stream cannot.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from tokenizers import Tokenizer

from edge.device.token_bytes import ByteRules, byte_rules

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
MAX_TOKEN_ID: Final = (1 << 32) - 1  # `tokenizers` knows no larger one
WINDOW_TOKENS: Final = 16
# An unfinished character is at most this many tokens old: none has more bytes.
MAX_UNFINISHED_TOKENS: Final = 4


class DecodedToken(NamedTuple):
    """What one token adds to the text.

    text: what can be shown because of it; empty while a character is still in pieces. token: the
    same, or the name of a special token, which adds nothing. data: its own bytes; all tokens' bytes
    joined are the text in UTF-8 (with U+FFFD for what is no UTF-8).
    """

    text: str
    token: str
    data: bytes


class Detokenizer:
    """The decode side of one tokenizer; its streams share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = frozenset(token.content for token in added if token.special)
        self.rules = byte_rules(_decoder_config(tokenizer))

    def name_of(self, token_id: int) -> str | None:
        """The token as the vocabulary writes it; None for an id that is not in it."""
        if not 0 <= token_id <= MAX_TOKEN_ID:
            return None
        name: str | None = self._tokenizer.id_to_token(token_id)
        return name

    def is_special(self, name: str) -> bool:
        """Whether the text leaves this token out."""
        return name in self._special

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of a whole sequence; special tokens and unknown ids add nothing."""
        stream = self.stream()
        return "".join([stream.push(token_id).text for token_id in token_ids]) + stream.flush()

    def window_text(self, token_ids: Sequence[int]) -> str:
        """A few tokens' text as `tokenizers` decodes it."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def stream(self, prompt_ids: Sequence[int] = ()) -> TextStream:
        """A decoder for the tokens that follow `prompt_ids`."""
        if self.rules is None:
            return WindowStream(self, prompt_ids)
        return ByteStream(self, self.rules, prompt_ids)


class TextStream(ABC):
    """Tokens to text, one at a time. Nothing raises, whatever the ids."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer

    def push(self, token_id: int) -> DecodedToken:
        """Take the next token; returns what it adds."""
        name = self._detokenizer.name_of(token_id)
        if name is None:
            return DecodedToken("", "", b"")
        if self._detokenizer.is_special(name):
            return DecodedToken("", name, b"")
        return self._push(token_id, name)

    @abstractmethod
    def flush(self) -> str:
        """The text of bytes that still wait for the rest of their character; then none wait."""

    @abstractmethod
    def _push(self, token_id: int, name: str) -> DecodedToken:
        """`push` for a token that is text."""


class ByteStream(TextStream):
    """A stream that knows each token's bytes.

    prompt_ids: tokens before the first one. They say whether the text begins here or goes on.
    """

    def __init__(
        self, detokenizer: Detokenizer, rules: ByteRules, prompt_ids: Sequence[int]
    ) -> None:
        super().__init__(detokenizer)
        self._rules = rules
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_first = True
        self._num_strip = rules.num_strip
        for token_id in prompt_ids:
            if not self._is_first and not self._num_strip:
                break
            super().push(token_id)
        self._utf8.reset()

    def flush(self) -> str:
        """See TextStream."""
        return self._utf8.decode(b"", final=True)

    def _push(self, token_id: int, name: str) -> DecodedToken:
        bytes_of = self._rules.first_bytes_of if self._is_first else self._rules.bytes_of
        self._is_first = False
        data = bytes_of(name)
        while self._num_strip and data:
            shorter = data.removeprefix(self._rules.strip)
            self._num_strip = 0 if shorter == data else self._num_strip - 1
            data = shorter
        text = self._utf8.decode(data)
        return DecodedToken(text, text, data)


class WindowStream(TextStream):
    """A stream for decoders that this module does not know: `tokenizers` decodes a window.

    The text of the window with the new token, less its text without it, is what the token adds.
    """

    def __init__(self, detokenizer: Detokenizer, prompt_ids: Sequence[int]) -> None:
        super().__init__(detokenizer)
        self._shown = [
            token_id
            for token_id in prompt_ids[-WINDOW_TOKENS:]
            if detokenizer.name_of(token_id) is not None
        ]
        self._waiting: list[int] = []

    def flush(self) -> str:
        """See TextStream."""
        text = self._new_text()
        self._shown = [*self._shown, *self._waiting][-WINDOW_TOKENS:]
        self._waiting = []
        return text

    def _push(self, token_id: int, name: str) -> DecodedToken:
        self._waiting.append(token_id)
        may_go_on = self._new_text().endswith(REPLACEMENT)
        if may_go_on and len(self._waiting) < MAX_UNFINISHED_TOKENS:
            return DecodedToken("", "", b"")
        text = self.flush()
        return DecodedToken(text, text, text.encode())

    def _new_text(self) -> str:
        before = self._detokenizer.window_text(self._shown)
        return self._detokenizer.window_text([*self._shown, *self._waiting])[len(before) :]


def _decoder_config(tokenizer: Tokenizer) -> Any:
    """The decoder's part of `tokenizer.json`; None when there is none."""
    decoder = tokenizer.decoder
    if decoder is None:
        return None
    try:
        return json.loads(decoder.__getstate__())
    except (ValueError, TypeError, AttributeError):  # a decoder written in Python
        return None
