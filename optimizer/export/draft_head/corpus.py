"""The training corpus on disk, in shards. A shard is made once, so a run can resume.

A shard holds passages, the model's final states on them (`text`), and the rows that the device's
own front computes for them. On the device the head sees exactly such rows, quantized like these.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from optimizer.errors import BuildError
from optimizer.export.calibration.text import shipped_ids
from optimizer.export.draft_head.shards import (
    WINDOW,
    FrontRows,
    Shard,
    open_shard,
    write_shard,
)
from optimizer.export.draft_head.text import ChatOptions, Passage, read_passages, write_chats
from optimizer.export.layers.layered_model import LayeredModel

Progress = Callable[[str, int, int], None]

CHATS_PER_SHARD: Final = 64
QUESTION_TOKENS: Final = 128  # of a question that holds a piece of the user's text
# What is asked about the user's text, in turn.
REQUESTS: Final = (
    "Summarize this text:\n",
    "What is this text about?\n",
    "List the main points of this text:\n",
    "Rewrite this text in simpler words:\n",
)
# The share of a window that a conversation fills, about: to count shards in advance.
_FILLED_SHARE: Final = 0.7
# A shard's name, and the call that writes its passages.
_ShardSource = tuple[str, Callable[[], Iterable[Passage]]]


def make_corpus(
    folder: Path,
    *,
    model: LayeredModel,
    tokenizer: Any,
    front: FrontRows,
    num_tokens: int,
    text_ids: npt.NDArray[np.int64] | None,
    progress: Progress,
    options: ChatOptions | None = None,
) -> list[Shard]:
    """Make the missing shards of a corpus of about `num_tokens` in `folder`, and open all of them.

    text_ids: the user's text (None: there is none). Half of the corpus then is answers about pieces
    of it. For the rest the model writes the questions too. A model whose layers are not in memory
    together writes nothing, because each token would read all of its weights: its corpus is the
    text itself, the user's or the one that ships. Raises BuildError where the corpus would be
    empty.
    """
    options = options or ChatOptions(window=WINDOW)
    folder.mkdir(parents=True, exist_ok=True)
    if model.keeps:
        write = partial(write_chats, model.whole(), tokenizer, options)
        questions = _questions(text_ids, tokenizer, num_tokens // 2 // options.window)
        left = num_tokens - len(questions) * options.window
        sources = [*_text_shards(write, questions), *_chat_shards(write, left, options.window)]
    else:

        def reading(what: str, done: int, total: int) -> None:
            progress("writing the corpus", done, total)

        sources = _read_shards(model, tokenizer, text_ids, num_tokens, reading)
    shards = []
    for done, (name, make) in enumerate(sources):
        progress("writing the corpus", done, len(sources))
        shard = open_shard(folder / name, model.hidden_size)
        if shard is None:
            write_shard(folder / name, make(), front)
            shard = open_shard(folder / name, model.hidden_size)
        if shard is None:
            raise BuildError(f"{folder / name}: what was written here cannot be read again")
        shards.append(shard)
    if not shards:
        raise BuildError(f"{num_tokens} tokens are too few for a corpus")
    progress("writing the corpus", len(sources), len(sources))
    return shards


def _read_shards(
    model: LayeredModel,
    tokenizer: Any,
    text_ids: npt.NDArray[np.int64] | None,
    num_tokens: int,
    progress: Progress,
) -> list[_ShardSource]:
    """One shard of text that the model only reads, as much of it as there is, up to num_tokens."""
    if text_ids is None or len(text_ids) < num_tokens:
        own = [] if text_ids is None else text_ids.tolist()
        text_ids = np.array([*own, *shipped_ids(tokenizer, num_tokens - len(own))])
    ids = text_ids[: num_tokens // (WINDOW + 1) * (WINDOW + 1)].reshape(-1, WINDOW + 1)
    if not len(ids):
        return []
    name = f"read-{hashlib.sha256(ids.tobytes()).hexdigest()[:12]}"
    return [(name, partial(read_passages, model, ids, progress=progress))]


def _text_shards(
    write: Callable[..., list[Passage]], questions: npt.NDArray[np.int64]
) -> Iterator[_ShardSource]:
    """Shards of answers to `questions`, named by what is asked."""
    for begin in range(0, len(questions), CHATS_PER_SHARD):
        asked = questions[begin : begin + CHATS_PER_SHARD]
        name = f"text-{hashlib.sha256(asked.tobytes()).hexdigest()[:12]}"
        yield name, partial(write, count=len(asked), seed=0, questions=asked)


def _chat_shards(
    write: Callable[..., list[Passage]], num_tokens: float, window: int
) -> Iterator[_ShardSource]:
    """About as many shards of the model's own conversations as hold `num_tokens`.

    Where that is less than half a shard, one smaller shard of its own name.
    """
    chats = num_tokens / (window * _FILLED_SHARE)
    count = round(chats / CHATS_PER_SHARD)
    for index in range(max(count, 0)):
        yield f"chat-{index:03d}", partial(write, count=CHATS_PER_SHARD, seed=index)
    if count == 0 and (few := math.ceil(chats)) > 0:
        yield f"chat-of-{few}", partial(write, count=few, seed=0)


def held_out_step(shards: Sequence[Shard], most: int) -> int:
    """Every how many runs one is held out: `most`, or fewer where no shard has as many runs.

    Raises BuildError for a corpus without two runs in one shard.
    """
    runs = max((-(-len(shard.token_ids) // WINDOW) for shard in shards), default=0)
    if runs < 2:
        raise BuildError(
            "the corpus is too small to hold anything out: the model's answers are short; ask for "
            "more tokens"
        )
    return min(most, runs)


def _questions(
    text_ids: npt.NDArray[np.int64] | None, tokenizer: Any, most: int
) -> npt.NDArray[np.int64]:
    """Questions int64 [N, QUESTION_TOKENS]: a request, then a piece of the text.

    The pieces are at most `most` and spread evenly over the text.
    """
    if text_ids is None or len(text_ids) < QUESTION_TOKENS:
        return np.zeros((0, QUESTION_TOKENS), dtype=np.int64)
    whole = len(text_ids) // QUESTION_TOKENS * QUESTION_TOKENS
    pieces = text_ids[:whole].reshape(-1, QUESTION_TOKENS)
    chosen = pieces[np.linspace(0, len(pieces) - 1, min(len(pieces), max(most, 1))).astype(int)]
    requests = [tokenizer.encode(request, add_special_tokens=False) for request in REQUESTS]
    return np.array(
        [
            [*requests[row % len(requests)], *piece][:QUESTION_TOKENS]
            for row, piece in enumerate(chosen.tolist())
        ],
        dtype=np.int64,
    )
