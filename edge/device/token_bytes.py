"""The bytes that a token stands for, from the decoder that `tokenizer.json` names.

- `ByteLevel` (GPT-2, Llama 3, Qwen, SmolLM): one letter for each byte.
- `Replace`, `ByteFallback`, `Fuse`, `Strip`, in a `Sequence` (Llama 2, Mistral, Gemma, Phi-3):
  "▁" is a space, `<0xE2>` is a byte, and the text loses its first space.
- `Metaspace` (T5 and others): "▁" is a space, and the first token loses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


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
