"""The corpus of a cloud head on disk: whole passages with the model's states, a shard at a time.

    SHARD/token_ids.npy   int64 [sum(T + 1)], passage after passage
    SHARD/lengths.npy     int64 [passages], T of each
    SHARD/states.f16      float16 [sum T, D]: the model's normed final states

A shard holds answers to questions of one length, half of them greedy, and is made once. So a run
that is interrupted goes on with the next shard.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from codec.arrays import I64
from optimizer.errors import BuildError
from optimizer.export.cloud_head.prompts import Prompt, prompts
from optimizer.export.draft_head.stored_rows import VALUE, RowRange, StoredRows
from optimizer.export.draft_head.text import ChatOptions, Passage, write_chats
from optimizer.export.working_folder import publish, working_folder

Progress = Callable[[str, int, int], None]

WINDOW: Final = 256
ROWS_PER_SHARD: Final = 48
# Questions that are looked at, for a shard of one length, before shorter shards are taken.
_LOOK_AHEAD: Final = 4096
_FEWEST: Final = 8
# How much of a window an answer fills, about: to count shards in advance.
_FILLED_SHARE: Final = 0.7
_MARK: Final = "held-out"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageRef:
    """One passage of a shard. token_ids: int64 [T + 1]; states: float16 [T, D], read when asked."""

    token_ids: I64
    states: StoredRows
    is_held_out: bool


def make_passages(
    folder: Path,
    *,
    model: Any,
    tokenizer: Any,
    width: int,
    num_tokens: int,
    own: Sequence[str] = (),
    progress: Progress,
) -> list[PassageRef]:
    """The passages of about `num_tokens` tokens in `folder`; missing shards are written by `model`.

    own: the user's questions (`prompts`). Raises BuildError where a shard cannot be read again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = max(2, round(num_tokens / (WINDOW * _FILLED_SHARE * ROWS_PER_SHARD)))
    found: list[PassageRef] = []
    for index, (questions, is_held_out) in zip(
        range(count), question_groups(tokenizer, seed=0, own=own), strict=False
    ):
        progress("writing the corpus", index, count)
        shard = folder / (f"{index:04d}-{_MARK}" if is_held_out else f"{index:04d}")
        passages = open_passages(shard, width)
        if passages is None:
            chats = write_chats(
                model,
                tokenizer,
                ChatOptions(window=WINDOW),
                count=len(questions),
                seed=index,
                questions=questions,
            )
            write_passages(shard, chats)
            passages = open_passages(shard, width)
        if passages is None:
            raise BuildError(f"{shard}: what was written here cannot be read again")
        found.extend(passages)
    progress("writing the corpus", count, count)
    return found


def question_groups(
    tokenizer: Any, *, seed: int, own: Sequence[str] = ()
) -> Iterator[tuple[I64, bool]]:
    """Questions int64 [N, Q] of one length each, and whether they are held out. Without end.

    The model writes answers to equally long questions together. A group is full, or is what
    `_LOOK_AHEAD` questions had of its length. A question leaves half of the window to its answer.
    Raises BuildError where none does.
    """
    groups: dict[tuple[bool, int], list[list[int]]] = defaultdict(list)
    seen: set[str] = set()
    for number, prompt in enumerate(prompts(seed, own), start=1):
        ids = _ids_of(tokenizer, prompt)
        if prompt.text not in seen and len(ids) <= WINDOW // 2:
            seen.add(prompt.text)
            group = groups[prompt.is_held_out, len(ids)]
            group.append(ids)
            if len(group) == ROWS_PER_SHARD:
                del groups[prompt.is_held_out, len(ids)]
                yield np.array(group, dtype=np.int64), prompt.is_held_out
        if number % _LOOK_AHEAD == 0:
            if not seen:
                raise BuildError("this tokenizer makes no question short enough to be answered")
            full = sorted(groups.items(), key=lambda item: -len(item[1]))
            for key, group in full:
                if len(group) >= _FEWEST:
                    del groups[key]
                    yield np.array(group, dtype=np.int64), key[0]
            seen.clear()


def _ids_of(tokenizer: Any, prompt: Prompt) -> list[int]:
    ids: list[int] = tokenizer.encode(prompt.text, add_special_tokens=False)
    return ids


def write_passages(folder: Path, passages: Sequence[Passage]) -> None:
    """Write the shard `folder`, whole or not at all. Passages too short to learn from are left."""
    kept = [passage for passage in passages if len(passage.token_ids) > 2]
    with working_folder(folder) as working:
        made = working / "shard"
        made.mkdir()
        empty = [np.zeros(0, dtype=np.int64)]
        np.save(made / "token_ids.npy", np.concatenate([*empty, *(one.token_ids for one in kept)]))
        np.save(made / "lengths.npy", np.array([len(one.states) for one in kept], dtype=np.int64))
        with (made / "states.f16").open("wb") as states:
            for passage in kept:
                states.write(passage.states.astype(VALUE, copy=False).tobytes())
        publish(made, folder)


def open_passages(folder: Path, width: int) -> list[PassageRef] | None:
    """The passages of the shard `folder`; None where there is none, or it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        token_ids, lengths = np.load(folder / "token_ids.npy"), np.load(folder / "lengths.npy")
        path = folder / "states.f16"
        total = int(lengths.sum())
        if path.stat().st_size != total * width * VALUE.itemsize or (lengths < 1).any():
            return None
        if len(token_ids) != total + len(lengths):
            return None
        is_held_out = folder.name.endswith(_MARK)
        ends = np.cumsum(lengths)
        return [
            PassageRef(
                token_ids=token_ids[end - length + at : end + at + 1],
                states=StoredRows([RowRange(path=path, begin=end - length, count=length)], width),
                is_held_out=is_held_out,
            )
            for at, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True))
        ]
    return None
