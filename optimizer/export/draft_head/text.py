"""What the draft head learns from: text, and the states from which the model predicts it.

There are two sources. The first is conversations that the model itself writes. A drafter has to
guess what the model says, so the model's own answers are the best text to learn from (Zhou et al.
2023, DistillSpec, arXiv:2310.08461, section 4). An instruction-tuned model also writes the question
when it is given the chat template up to the user's words (Xu et al. 2024, Magpie, arXiv:2406.08464,
section 2). The second source is answers about the user's own text, which is part of the question.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwprofiles.heap import trim_heap
from optimizer.export.calibration.hidden_states import cache_argument, final_norm
from optimizer.export.calibration.text import roomy_cache
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.layers.passes import Progress, states_at

# Of the conversations that grow together, in float32.
KV_BYTES: Final = 576 << 20
_USERS_WORDS: Final = "\u2400question\u2400"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How the model writes conversations. Lengths in tokens.

    Questions are drawn at temperature 1 from the `top_k` likeliest tokens. Every second answer is
    greedy and the others are drawn at `temperature`, because the head will draft for both.
    """

    question_tokens: int = 48
    window: int = 256
    top_k: int = 50
    temperature: float = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """Consecutive text and the model's normed final states on it.

    token_ids: [T + 1] int64. states: [T, D] float16, from which the head predicts tokens 1 to T.
    """

    token_ids: npt.NDArray[np.int64]
    states: npt.NDArray[np.float16]


def write_chats(
    model: Any,
    tokenizer: Any,
    options: ChatOptions,
    *,
    count: int,
    seed: int,
    questions: npt.NDArray[np.int64] | None = None,
) -> list[Passage]:
    """`count` conversations of at most `options.window` tokens, question and answer.

    questions: int64 [count, Q], what the user says (None: the model writes the questions). All rows
    grow by one token at a time, so no padding is needed. What follows the end of an answer is
    dropped. As many conversations grow together as have room for their KV (`KV_BYTES`). What is
    drawn does not depend on their number.
    """
    chats = [
        _Conversation(
            template_parts(tokenizer), _stop_ids(model, tokenizer), options, greedy=not row % 2
        )
        for row in range(count)
    ]
    for chat, question in zip(chats, [] if questions is None else questions.tolist(), strict=False):
        chat.ask(question)
    size = max(1, KV_BYTES // (_token_kv_bytes(model) * (options.window + 1)))
    groups = -(-count // size)
    passages: list[Passage] = []
    for begin, end in pairwise(count * group // groups for group in range(groups + 1)):
        passages += _written(model, options, chats, slice(begin, end), seed)
    return passages


def _written(
    model: Any, options: ChatOptions, chats: Sequence[_Conversation], rows: slice, seed: int
) -> list[Passage]:
    """The conversations `rows` of all `chats`, written to their ends."""
    group = chats[rows]
    generator = torch.Generator().manual_seed(seed)
    current = torch.tensor([chat.start() for chat in group])
    width = current.shape[1]
    cache = {cache_argument(model): roomy_cache(model, max(options.window, width) + 1)}
    with torch.inference_mode(), _final_states(model) as kept:
        while width <= options.window and not all(chat.done for chat in group):
            out = model(current.to(model.device), **cache, use_cache=True, logits_to_keep=1)
            logits = out.logits[:, -1].float().cpu()
            # Of all conversations, so that each gets the same numbers in any group.
            noise = torch.empty(len(chats), options.top_k).exponential_(generator=generator)
            chosen = _choose(logits, group, options, noise[rows])
            current = torch.tensor(
                [[chat.push(token)] for chat, token in zip(group, chosen, strict=True)]
            )
            width += 1
    states = torch.cat(kept, dim=1).numpy()
    return [
        Passage(
            token_ids=np.array(chat.tokens, dtype=np.int64),
            states=states[row, : len(chat.tokens) - 1],
        )
        for row, chat in enumerate(group)
    ]


def _token_kv_bytes(model: Any) -> int:
    """Bytes of one token's keys and values in float32, in all layers."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return 4 * 2 * int(config.num_hidden_layers * config.num_key_value_heads * head_dim)


def read_passages(
    model: LayeredModel, token_ids: npt.NDArray[np.int64], *, progress: Progress
) -> Iterator[Passage]:
    """Passages of given text, token_ids [N, T + 1]: one pass through the layers for all of them.

    The layers are done when the first passage comes.
    """
    last = model.num_layers
    rows = states_at(model, [last], token_ids[:, :-1], progress)[last]
    trim_heap()  # the last layer's
    for at, ids in enumerate(token_ids):
        states = model.normed(rows.read(at, at + 1)[0]).to(torch.float16).numpy()
        yield Passage(token_ids=ids, states=states)
    rows.close()


def template_parts(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The chat template before and after the user's words, as token ids.

    Without a chat template: the start token if there is one, and nothing after.
    """
    if not tokenizer.chat_template:
        start = tokenizer.bos_token_id
        return ([] if start is None else [int(start)]), []
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": _USERS_WORDS}], tokenize=False, add_generation_prompt=True
    )
    head, _, tail = text.partition(_USERS_WORDS)
    return (
        tokenizer.encode(head, add_special_tokens=False),
        tokenizer.encode(tail, add_special_tokens=False),
    )


class _Conversation:
    """One row: the user's turn, the template's words in between, then the answer."""

    def __init__(
        self,
        template: tuple[list[int], list[int]],
        stops: set[int],
        options: ChatOptions,
        *,
        greedy: bool,
    ) -> None:
        self.tokens: list[int] = []
        self.done = False
        self.answering = not template[1]
        self._head, self._tail = template
        self._stops = stops
        self._left = options.question_tokens
        self._forced: deque[int] = deque()
        self._greedy = greedy

    @property
    def is_greedy(self) -> bool:
        return self.answering and self._greedy

    def ask(self, question: list[int]) -> None:
        """Give the user's words, so that the model writes only the answer."""
        self._head = [*self._head, *question, *self._tail]
        self.answering = True

    def start(self) -> list[int]:
        self.tokens = list(self._head) or [0]
        return self.tokens[:]

    def push(self, token_id: int) -> int:
        """Append the model's choice, or the template's token where one is due; returns it."""
        if self.done:
            return token_id
        if self._forced:
            token_id = self._forced.popleft()
        elif not self.answering:
            self._left -= 1
            if token_id in self._stops or self._left <= 0:
                self.answering = True
                self._forced.extend(self._tail)
                token_id = self._forced.popleft()
        elif token_id in self._stops:
            self.done = True
        self.tokens.append(token_id)
        return token_id


def _choose(
    logits: Tensor, chats: Sequence[_Conversation], options: ChatOptions, noise: Tensor
) -> list[int]:
    """The next token of every row. logits: [B, V]; noise: [B, top_k], of the unit exponential.

    The largest p / noise is a draw from p, which is how torch draws one.
    """
    values, ids = logits.topk(options.top_k, dim=-1)
    temperatures = torch.tensor([options.temperature if chat.answering else 1.0 for chat in chats])
    shares = (values / temperatures[:, None]).softmax(-1)
    drawn = (shares / noise).argmax(-1, keepdim=True)
    picks = torch.where(torch.tensor([chat.is_greedy for chat in chats])[:, None], 0, drawn)
    chosen: list[int] = ids.gather(1, picks)[:, 0].tolist()
    return chosen


@contextmanager
def _final_states(model: Any) -> Iterator[list[Tensor]]:
    """While open, the list collects what the final norm gives: float16 [B, T, D] of each pass."""
    kept: list[Tensor] = []
    handle = final_norm(model).register_forward_hook(
        lambda module, inputs, output: kept.append(output.detach().to("cpu", torch.float16))
    )
    try:
        yield kept
    finally:
        handle.remove()


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    value = model.generation_config.eos_token_id
    ids = value if isinstance(value, list) else [value, tokenizer.eos_token_id]
    return {int(token) for token in ids if token is not None}
