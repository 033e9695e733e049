"""From token ids to bytes to text: one token at a time, for any sequence of ids.

A token stands for bytes, and the text is those bytes read as UTF-8. So text appears once the last
byte of a character is there, and bytes that are no UTF-8 become U+FFFD, as in WHATWG's decoder.
What bytes a token stands for depends on the decoder that `tokenizer.json` names:

- `ByteLevel` (GPT-2, Llama 3, Qwen, SmolLM): one letter for each byte.
- `Replace`, `ByteFallback`, `Fuse`, `Strip`, in a `Sequence` (Llama 2, Mistral, Gemma, Phi-3):
  "▁" is a space, `<0xE2>` is a byte, and the text loses its first space.
- `Metaspace` (T5 and others): "▁" is a space, and the first token loses it.

Whatever else it names is left to `tokenizers` itself, on a window of the last tokens.

For a prompt that ends with a whole character, prompt and answer are together what `tokenizers`
decodes from all ids. One case differs: for a run of byte tokens that is not UTF-8 as a whole,
`tokenizers` takes back the characters that were complete, and a stream cannot.
"""

from __future__ import annotations

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tokenizers import Tokenizer

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
MAX_TOKEN_ID: Final = (1 << 32) - 1  # `tokenizers` knows no larger one
WINDOW_TOKENS: Final = 16
# An unfinished character is at most this many tokens old: none has more bytes.
MAX_UNFINISHED_TOKENS: Final = 4

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class DecodedToken(NamedTuple):
    """What one token adds to the text.

    text: what can be shown because of it; empty while a character is still in pieces. token: the
    same, or the name of a special token, which adds nothing. data: its own bytes; all tokens' bytes
    joined are the text in UTF-8 (with U+FFFD for what is no UTF-8).
    """

    text: str
    token: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRules:
    """How a token's name becomes bytes, and what the beginning of the text loses.

    bytes_of: from a token's name to its bytes. first_bytes_of: the same for the first token of a
    text. strip: these bytes are dropped at the very beginning of the text, up to `num_strip` times.
    """

    bytes_of: Callable[[str], bytes]
    first_bytes_of: Callable[[str], bytes]
    strip: bytes = b""
    num_strip: int = 0


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


def byte_rules(config: Any) -> ByteRules | None:
    """The rules for a decoder as `tokenizer.json` describes it; None for one not known here."""
    steps = _flat(config)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteRules(bytes_of=_byte_level, first_bytes_of=_byte_level)
    if kinds == ["Metaspace"]:
        return _metaspace(steps[0])
    return _pieces(steps)


def _flat(config: Any) -> list[dict[str, Any]]:
    if not isinstance(config, dict):
        return []
    if config.get("type") != "Sequence":
        return [config]
    return [step for part in config.get("decoders") or () for step in _flat(part)]


def _metaspace(step: dict[str, Any]) -> ByteRules:
    mark = str(step.get("replacement", "▁"))
    keeps_first = step.get("prepend_scheme", "always") == "never"

    def bytes_of(name: str) -> bytes:
        return name.replace(mark, " ").encode()

    def first_bytes_of(name: str) -> bytes:
        return name.replace(mark, " " if keeps_first else "").encode()

    return ByteRules(bytes_of=bytes_of, first_bytes_of=first_bytes_of)


def _pieces(steps: Sequence[dict[str, Any]]) -> ByteRules | None:
    """SentencePiece's rules: Replace..., ByteFallback, Fuse, Strip; each may be left out."""
    replaced: list[tuple[str, str]] = []
    strip, num_strip = b"", 0
    order = ("Replace", "ByteFallback", "Fuse", "Strip")
    place = 0
    has_bytes = False
    for step in steps:
        kind = step.get("type")
        if kind not in order[place:] or num_strip:
            return None
        place = order.index(kind)
        if kind == "Replace":
            old = (step.get("pattern") or {}).get("String")
            if not isinstance(old, str) or not old:
                return None
            replaced.append((old, str(step.get("content", ""))))
        elif kind == "ByteFallback":
            has_bytes = True
        elif kind == "Strip":
            if step.get("stop") or "Fuse" not in [other.get("type") for other in steps]:
                return None
            strip, num_strip = str(step.get("content", " ")).encode(), int(step.get("start", 0))
    if not replaced and not has_bytes:
        return None

    def bytes_of(name: str) -> bytes:
        for old, new in replaced:
            name = name.replace(old, new)
        if has_bytes and (byte := _BYTE_TOKEN.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        return name.encode()

    return ByteRules(bytes_of=bytes_of, first_bytes_of=bytes_of, strip=strip, num_strip=num_strip)


def _letters_of_bytes() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones are themselves, the others follow 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


_BYTE_OF_LETTER: Final = _letters_of_bytes()


def _byte_level(name: str) -> bytes:
    """A name whose every letter stands for a byte; any other (an added token) is itself."""
    try:
        return bytes([_BYTE_OF_LETTER[letter] for letter in name])
    except KeyError:
        return name.encode()


def _decoder_config(tokenizer: Tokenizer) -> Any:
    """The decoder's part of `tokenizer.json`; None when there is none."""
    decoder = tokenizer.decoder
    if decoder is None:
        return None
    try:
        return json.loads(decoder.__getstate__())
    except (ValueError, TypeError, AttributeError):  # a decoder written in Python
        return None
