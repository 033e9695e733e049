"""Text to calibrate on: the user's, the model's own, or what ships with the package.

What the model writes begins in many ways, so that it is of many kinds: a user's question, code,
tables, other languages, exercises, prose. Every second piece begins with a random token.

Sampling from the model needs no corpus, has the model's own distribution in every language and
format it knows, and cannot leak a test set. Self-generated calibration data: Williams et al. 2024,
arXiv:2410.17170. It takes a pass through all layers for each position, so only a model whose
layers stay in memory writes its text.

`shipped_text.txt`, for the others, is written for this project: prose, dialogue, data and other
languages, and pages and programs of the project in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from codec.arrays import I64
from optimizer.export.calibration.hidden_states import cache_argument, embedding_shape
from optimizer.export.certify.certificate import Windows
from optimizer.export.layers.passes import Progress, drawn_tokens, exp_shifted_

GIVEN_TEXT: Final = "given by the user"
OWN_TEXT: Final = "the model's own"
SHIPPED_TEXT: Final = "shipped with splitpoint"
# How pieces begin, kind by kind; a piece with the chat template's beginning is a user's question.
_STARTS: Final = (
    ("def ", "import ", "class ", "function ", "#include <"),
    ("| Name | ", '{\n  "', "Year,", "1. ", "<table>"),
    ("Le ", "Der ", "La ", "El ", "Il "),
    ("Question: ", "Q: How many ", "Problem: ", "Solve ", "If a "),
    ("The ", "In ", "She ", '"', "It was "),
)
_CHAT: Final = "USERS-WORDS"
REPEATING_TOKENS: Final = 4096
PIECE: Final = 128  # tokens that are written in one go


def shipped_text() -> str:
    """The text that ships with the package."""
    place = files("optimizer.export.calibration").joinpath("shipped_text.txt")
    return place.read_text(encoding="utf-8")


def shipped_ids(tokenizer: Any, num_tokens: int) -> list[int]:
    """At least `num_tokens` ids of the shipped text, which starts again where it is too short.

    tokenizer: a transformers tokenizer. Text that comes again lies at other places of a window.
    """
    ids = list(tokenizer(shipped_text())["input_ids"])
    return (ids * (num_tokens // max(len(ids), 1) + 1))[: max(num_tokens, 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTextHints:
    """What goes along with text that the model writes itself.

    starts: how its pieces begin. repeating: ids of text that repeats its words as people do, which
    pieces drawn at random do not; what rows share with earlier ones is fitted to it.
    """

    starts: Sequence[Sequence[int]] = ()
    repeating: Sequence[int] = ()


def own_text_hints(tokenizer: Any) -> OwnTextHints:
    """Of this tokenizer: many kinds of beginnings, and the shipped text."""
    return OwnTextHints(
        starts=own_starts(tokenizer), repeating=shipped_ids(tokenizer, REPEATING_TOKENS)
    )


def own_starts(tokenizer: Any) -> list[list[int]]:
    """How the pieces of the model's own text begin, kinds in turn; [] stands for a random token.

    tokenizer: a transformers tokenizer. Without a chat template there are no questions of users.
    """
    chat: list[int] = []
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": _CHAT}]
        text: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        chat = tokenizer.encode(text.partition(_CHAT)[0], add_special_tokens=False)
    starts: list[list[int]] = []
    for of_kinds in zip(*_STARTS, strict=True):
        for start in (*of_kinds, None):
            ids = chat if start is None else tokenizer.encode(start, add_special_tokens=False)
            starts += [list(ids), []]
    return starts


def sampled_windows(
    model: PreTrainedModel,
    *,
    num_windows: int,
    window: int,
    seed: int,
    piece: int = PIECE,
    starts: Sequence[Sequence[int]] = (),
    progress: Progress | None = None,
) -> Windows:
    """[num_windows, window] token ids drawn from the model, in pieces of at most `piece` tokens.

    Each piece begins with the next one of `starts`, or with a random token where that is empty. All
    pieces grow together, so that a step reads the
    weights once for all of them; there are `piece` steps.
    """
    piece = min(piece, window)
    per_window = -(-window // piece)
    count = num_windows * per_window
    generator = torch.Generator().manual_seed(seed)
    vocab_size, _ = embedding_shape(model)
    name, cache = cache_argument(model), roomy_cache(model, piece)
    given = _given_tokens(starts, count, piece)
    current = torch.randint(0, vocab_size, (count, 1), generator=generator)
    current = torch.where(given[:, :1] < 0, current, given[:, :1])
    drawn = [current]
    with torch.no_grad():
        for written in range(1, piece):
            out = model(current.to(model.device), use_cache=True, **{name: cache})
            current = drawn_tokens(exp_shifted_(out.logits[:, -1].float()), generator).cpu()
            at = slice(written, written + 1)
            current = torch.where(given[:, at] < 0, current, given[:, at])
            drawn.append(current)
            if progress is not None:
                progress("the model writes calibration text", written + 1, piece)
    rows: I64 = torch.cat(drawn, dim=1).numpy()
    return rows.reshape(num_windows, per_window * piece)[:, :window]


def _given_tokens(starts: Sequence[Sequence[int]], count: int, piece: int) -> Tensor:
    """[count, piece]: the token that stands at a place of a piece, or -1 where one is drawn."""
    given = torch.full((count, piece), -1)
    for index in range(count if starts else 0):
        start = list(starts[index % len(starts)])[:piece]
        given[index, : len(start)] = torch.tensor(start, dtype=torch.int64)
    return given


def roomy_cache(model: PreTrainedModel, length: int) -> DynamicCache:
    """An empty cache with room for `length` tokens, which no step has to copy."""
    cache = DynamicCache(config=model.config)
    if (getattr(model.config, "sliding_window", None) or length) >= length:
        cache.layers = [_RoomyLayer(length) for _ in range(model.config.num_hidden_layers)]
    return cache


class _RoomyLayer(DynamicLayer):
    """Keys and values of a layer [B, G, T, d], in tensors that have room for all that will come."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length
        self._count = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See transformers: store new keys and values, return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], self._length)
            self._keys = key_states.new_empty(*shape, key_states.shape[-1])
            self._values = value_states.new_empty(*shape, value_states.shape[-1])
        begin, self._count = self._count, self._count + key_states.shape[2]
        self._keys[:, :, begin : self._count] = key_states
        self._values[:, :, begin : self._count] = value_states
        self.keys = self._keys[:, :, : self._count]
        self.values = self._values[:, :, : self._count]
        return self.keys, self.values
