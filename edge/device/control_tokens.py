"""Control tokens in a message are text; only the chat template writes real ones.

A message may hold the text of a control token, such as `<|im_end|>`. A tokenizer that reads the
whole conversation as one text would make a turn of it. So before rendering, each such text in a
message is put between two marks, characters that occur nowhere else. After rendering, what stands
between marks is tokenized without the tokenizer's added tokens. (The method is that of
`sanitize_control_tokens` in transformers 5.24; its marks are fixed, ours are chosen.)

Where a text begins or ends with a part of a control token, a single mark stands at that end, so
that two messages cannot make a control token together.

A conversation without such texts, which is nearly every one, is tokenized as one text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from tokenizers import Tokenizer

from edge.device.token_ids import token_ids
from edge.errors import InputError

Messages: TypeAlias = Sequence[Mapping[str, Any]]

_MARKS: Final = range(0xF0000, 0xFFFFD)  # the private use area of plane 15
_NAME_CHARS: Final = 80  # of a field's name, in an error
_LEAD: Final = "\n"  # SentencePiece puts a space before a text's first character


class ControlTokens:
    """The control tokens of one tokenizer and one template.

    They are the special tokens, and the other added tokens that the template writes, save white
    space. literals: every text that stands in the template.
    """

    def __init__(self, tokenizer: Tokenizer, literals: str) -> None:
        self._tokenizer = tokenizer
        self._lead_ids = self._encoded(_LEAD)
        self._id_of = {
            token.content: token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.content
            and (token.special or (token.content in literals and not token.content.isspace()))
        }
        # Longest first: a token takes precedence over those that it contains.
        texts = sorted(self._id_of, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        self._ids = frozenset(self._id_of.values())
        # Parts of one character are left out: nearly every text ends with one at some time.
        parts = [(text[:cut], text[cut:]) for text in texts for cut in range(1, len(text))]
        self._heads = frozenset(head for head, _ in parts if len(head) > 1)
        self._tails = frozenset(tail for _, tail in parts if len(tail) > 1)
        self._longest = max(map(len, texts), default=0)

    def encode_chat(self, messages: Messages, render: Callable[[Messages], str]) -> list[int]:
        """Ids of a conversation.

        render: what the chat template makes of messages. Raises InputError where the tokenizer
        makes a control token of other text.
        """
        texts = [text for message in messages for text in _texts(message)]
        holds_tokens = any(self._any.search(text) for text in texts)
        if not holds_tokens and not any(any(self._open_ends(text)) for text in texts):
            return self._encode_whole(render(messages))
        used = set().union(*texts)
        free = (mark for mark in map(chr, _MARKS) if mark not in used)
        marks = next(free), next(free)
        pieces = self._pieces(render([self._marked(message, marks) for message in messages]), marks)
        if not holds_tokens:  # do the ends of messages make a control token together?
            whole = render(messages)
            if self._count(whole) == self._count("\0".join(filter(None, pieces[::2]))):
                return self._encode_whole(whole)
        return self._encode_pieces(pieces)

    def check_names(self, value: Any) -> None:
        """InputError where the name of a field, at any depth, holds text of a control token.

        A template may write such names, of a tool's parameters. They are not marked as texts are.
        """
        if isinstance(value, Mapping):
            for name, item in value.items():
                if self._any.search(name) or any(self._open_ends(name)):
                    raise InputError(
                        f"the name {name[:_NAME_CHARS]!r} holds text of a control token: change it"
                    )
                self.check_names(item)
        elif isinstance(value, list | tuple):
            for item in value:
                self.check_names(item)

    def _open_ends(self, text: str) -> tuple[bool, bool]:
        """Whether the text begins with the last part of a control token, ends with the first."""
        sizes = range(2, self._longest)
        return (
            any(text[:size] in self._tails for size in sizes),
            any(text[-size:] in self._heads for size in sizes),
        )

    def _marked(self, value: Any, marks: tuple[str, str]) -> Any:
        """The value with marks around each control token's text, at every depth."""
        if isinstance(value, str):
            begins, ends = self._open_ends(value)
            inside = self._any.sub(f"{marks[0]}\\g<0>{marks[1]}", value)
            return f"{marks[0] * begins}{inside}{marks[0] * ends}"
        if isinstance(value, Mapping):
            return {key: self._marked(item, marks) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(item, marks) for item in value]
        return value

    def _pieces(self, rendered: str, marks: tuple[str, str]) -> list[str | None]:
        """What is rendered, as text, marked token, text, marked token, ..., text.

        None in place of a token: a mark whose other one is gone, as the template took a part of the
        text. It is dropped, and still parts the texts beside it.
        """
        start, end = marks
        pattern = f"{start}({self._any.pattern}){end}|[{start}{end}]"
        return re.split(pattern, _with_marks(rendered, marks))

    def _encode_whole(self, rendered: str) -> list[int]:
        """Ids of a conversation whose messages hold no control tokens' texts."""
        ids = self._encoded(rendered)
        self._check(ids, self._count(rendered))
        return ids

    def _encode_pieces(self, pieces: Sequence[str | None]) -> list[int]:
        ids = self._encoded(pieces[0] or "")
        for place, piece in enumerate(pieces[1:], start=1):
            if piece:
                ids += self._as_text(piece) if place % 2 else self._inner(piece)
        self._check(ids, self._count("\0".join(filter(None, pieces[::2]))))
        return ids

    def _encoded(self, text: str) -> list[int]:
        return token_ids(self._tokenizer, text, add_special_tokens=False)

    def _inner(self, piece: str) -> list[int]:
        """Ids of a piece that is not the first one."""
        return self._without_lead(self._encoded(_LEAD + piece)) or self._encoded(piece)

    def _as_text(self, piece: str) -> list[int]:
        """Ids of a control token's text as plain text."""
        ids = self._without_lead(self._plain(_LEAD + piece)) or self._plain(piece)
        if self._ids.isdisjoint(ids):
            return ids
        # The model of the tokenizer knows the text as a whole: character by character it does not.
        return [token_id for character in piece for token_id in self._plain(character)]

    def _without_lead(self, ids: list[int]) -> list[int]:
        """The ids after those of the lead; empty where the lead joined with what follows."""
        size = len(self._lead_ids)
        return ids[size:] if ids[:size] == self._lead_ids else []

    def _plain(self, text: str) -> list[int]:
        """Ids without any added tokens: normalizer, pre-tokenizer and model alone."""
        tokenizer = self._tokenizer
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        words = [text]
        if tokenizer.pre_tokenizer is not None:
            words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in tokenizer.model.tokenize(word)]

    def _count(self, text: str) -> int:
        """How many control tokens a text has."""
        return sum(1 for _ in self._any.finditer(text))

    def _check(self, ids: Sequence[int], num_written: int) -> None:
        """InputError where there are more control tokens than the template wrote.

        A normalizer can turn other characters into those of a control token.
        """
        if sum(token_id in self._ids for token_id in ids) > num_written:
            raise InputError(
                "a message holds text that this model's tokenizer turns into control tokens: "
                "change it, or allow it (--allow-control-tokens)"
            )


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _with_marks(rendered: str, marks: tuple[str, str]) -> str:
    """The text with marks as themselves, where JSON in ASCII or Python's `repr` escaped them."""
    for mark in marks:
        for escaped in (json.dumps(mark)[1:-1], repr(mark)[1:-1]):
            rendered = rendered.replace(escaped, mark)
    return rendered
