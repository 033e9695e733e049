"""The training corpus on disk, in shards: what is made once and never again, so a run can resume.

Each shard holds passages, the model's final states on them (`draft_text`) and the rows that the
device's own front makes of them: the head will see exactly such rows, quantization and all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from optimizer.errors import BuildError
from optimizer.export.draft_head.text import ChatOptions, Passage, write_chats

# One passage's rows from an empty cache: token ids [T] -> float32 [T, D].
FrontRows = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]
Progress = Callable[[str, int, int], None]

CHATS_A_SHARD: Final = 64
WINDOW: Final = 256
QUESTION: Final = 128  # tokens of a question with a piece of the user's text in it
# What is asked about the user's text, in turn.
ASKS: Final = (
    "Summarize this text:\n",
    "What is this text about?\n",
    "List the main points of this text:\n",
    "Rewrite this text in simpler words:\n",
)
# Of the fp16 range; residual streams with larger values are clipped, which no head would notice.
_LARGEST: Final = 6.0e4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Consecutive passages. token_ids: [N] the token at each position; rows and states: [N, D]
    float16 there. Where a passage ends, its last token has no row and is left out."""

    token_ids: npt.NDArray[np.int64]
    rows: npt.NDArray[np.float16]
    states: npt.NDArray[np.float16]


def make_corpus(
    folder: Path,
    *,
    model: Any,
    tokenizer: Any,
    front: FrontRows,
    num_tokens: int,
    text_ids: npt.NDArray[np.int64] | None,
    progress: Progress,
    options: ChatOptions | None = None,
) -> list[Shard]:
    """Make what is missing of a corpus of about `num_tokens` in `folder`, and read it all.

    text_ids: the user's text; half of the corpus are answers about pieces of it. To the rest, or
    without a text to all, the model writes the questions too. Raises BuildError when nothing comes
    of it.
    """
    options = options or ChatOptions(window=WINDOW)
    folder.mkdir(parents=True, exist_ok=True)
    sources: list[tuple[str, Callable[[], list[Passage]]]] = []
    questions = _questions(text_ids, tokenizer, num_tokens // 2 // options.window)
    for begin in range(0, len(questions), CHATS_A_SHARD):
        part = questions[begin : begin + CHATS_A_SHARD]
        name = f"text-{hashlib.sha256(part.tobytes()).hexdigest()[:12]}"
        sources.append(
            (
                name,
                lambda part=part: write_chats(  # type: ignore[misc]
                    model, tokenizer, options, count=len(part), seed=0, questions=part
                ),
            )
        )
    # A chat is about half a window of answer; shards are counted by what they turn out to hold.
    left = num_tokens - len(questions) * options.window
    for index in range(max(round(left / (CHATS_A_SHARD * options.window * 0.7)), 0)):
        sources.append(
            (
                f"chat-{index:03d}",
                lambda index=index: write_chats(  # type: ignore[misc]
                    model, tokenizer, options, count=CHATS_A_SHARD, seed=index
                ),
            )
        )
    shards = []
    for done, (name, make) in enumerate(sources):
        progress("writing the corpus", done, len(sources))
        path = folder / f"{name}.npz"
        if not path.is_file():
            _save(path, make(), front)
        shards.append(_load(path))
    if not shards:
        raise BuildError(f"{num_tokens} tokens are too few for a corpus")
    progress("writing the corpus", len(sources), len(sources))
    return shards


def split_shard(shard: Shard, every: int) -> Iterator[tuple[Shard, bool]]:
    """The shard in runs of WINDOW positions; every `every`-th is marked as held out."""
    for index, begin in enumerate(range(0, len(shard.token_ids), WINDOW)):
        part = slice(begin, begin + WINDOW)
        piece = Shard(
            token_ids=shard.token_ids[part], rows=shard.rows[part], states=shard.states[part]
        )
        yield piece, index % every == every - 1


def _questions(
    text_ids: npt.NDArray[np.int64] | None, tokenizer: Any, most: int
) -> npt.NDArray[np.int64]:
    """[N, QUESTION] a request and a piece of the text after it, evenly spread, at most `most`."""
    if text_ids is None or len(text_ids) < QUESTION:
        return np.zeros((0, QUESTION), dtype=np.int64)
    pieces = text_ids[: len(text_ids) // QUESTION * QUESTION].reshape(-1, QUESTION)
    chosen = pieces[np.linspace(0, len(pieces) - 1, min(len(pieces), max(most, 1))).astype(int)]
    asks = [tokenizer.encode(ask, add_special_tokens=False) for ask in ASKS]
    return np.array(
        [[*asks[row % len(asks)], *piece][:QUESTION] for row, piece in enumerate(chosen.tolist())],
        dtype=np.int64,
    )


def _save(path: Path, passages: list[Passage], front: FrontRows) -> None:
    """Under another name first, so that a shard is there whole or not at all."""
    kept = [passage for passage in passages if len(passage.token_ids) > 1]
    rows = [np.clip(front(passage.token_ids[:-1]), -_LARGEST, _LARGEST) for passage in kept]
    partial = path.with_suffix(".part.npz")
    np.savez(
        partial,
        token_ids=np.concatenate([passage.token_ids[:-1] for passage in kept]),
        rows=np.concatenate(rows).astype(np.float16),
        states=np.concatenate([passage.states for passage in kept]),
    )
    os.replace(partial, path)


def _load(path: Path) -> Shard:
    with np.load(path) as arrays:
        return Shard(token_ids=arrays["token_ids"], rows=arrays["rows"], states=arrays["states"])
