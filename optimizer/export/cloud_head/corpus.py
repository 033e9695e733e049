"""The corpus of a cloud head on disk: whole passages with the model's states, a shard at a time.

    SHARD/token_ids.npy   int64 [sum(T + 1)], passage after passage
    SHARD/lengths.npy     int64 [passages], T of each
    SHARD/states.f16      float16 [sum T, D]: the model's normed final states

A shard holds answers to questions of one length, half of them greedy, and is made once. So a run
that is interrupted goes on with the next shard. Long questions, such as a text to summarize, are
cut to few lengths, so that many are equally long.
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
from optimizer.export.draft_head.text import ChatOptions, Passage, template_parts, write_chats
from optimizer.export.working_folder import publish, working_folder

Progress = Callable[[str, int, int], None]

WINDOW: Final = 256
LONG_ANSWER: Final = 128  # tokens, to a question that fills more than half of a window
LONGEST_QUESTION: Final = 640
LENGTH_STEP: Final = 64  # long questions are cut to multiples of it
ROWS_PER_SHARD: Final = 48
HELD_OUT_ROWS: Final = 16  # of a shard of a held-out kind; these kinds are few, and come early so
# Questions that are looked at, for a shard of one length, before shorter shards are taken.
_LOOK_AHEAD: Final = 4096
_FEWEST: Final = 8
_FEWEST_SHARDS: Final = 2
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
    context_length: int,
    num_tokens: int,
    own: Sequence[str] = (),
    progress: Progress,
) -> list[PassageRef]:
    """The passages of about `num_tokens` tokens in `folder`; missing shards are written by `model`.

    width and context_length: the model's. own: the user's questions (`prompts`).
    Raises BuildError where a shard cannot be read again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    overhead = sum(map(len, template_parts(tokenizer)))
    longest = min(LONGEST_QUESTION, context_length - overhead - LONG_ANSWER)
    found: list[PassageRef] = []
    written = 0
    groups = question_groups(tokenizer, seed=0, own=own, longest=longest)
    most = range(max(num_tokens, _FEWEST_SHARDS) + 1)  # a shard has a token, or teaches nothing
    for index, (questions, is_held_out) in zip(most, groups, strict=False):
        has_enough = index >= _FEWEST_SHARDS and written >= num_tokens
        if has_enough and not all(one.is_held_out for one in found):
            break
        progress("writing the corpus", min(written, num_tokens), num_tokens)
        shard = folder / (f"{index:04d}-{_MARK}" if is_held_out else f"{index:04d}")
        passages = open_passages(shard, width)
        if passages is None:
            window = max(WINDOW, overhead + questions.shape[1] + LONG_ANSWER)
            chats = write_chats(
                model,
                tokenizer,
                ChatOptions(window=window),
                count=len(questions),
                seed=index,
                questions=questions,
            )
            write_passages(shard, chats)
            passages = open_passages(shard, width)
        if passages is None:
            raise BuildError(f"{shard}: what was written here cannot be read again")
        found.extend(passages)
        written += sum(len(one.states) for one in passages)
    progress("writing the corpus", num_tokens, num_tokens)
    return found


def question_groups(
    tokenizer: Any, *, seed: int, own: Sequence[str] = (), longest: int = WINDOW // 2
) -> Iterator[tuple[I64, bool]]:
    """Questions int64 [N, Q] of one length each, and whether they are held out. Without end.

    The model writes answers to equally long questions together. A group is full, or is what
    `_LOOK_AHEAD` questions had of its length. longest: tokens of a question. A longer one is cut
    where `longest` is more than half of a window, and is left out otherwise. Raises BuildError
    where none is left.
    """
    groups: dict[tuple[bool, int], list[list[int]]] = defaultdict(list)
    seen: set[str] = set()
    for number, prompt in enumerate(prompts(seed, own), start=1):
        ids = _ids_of(tokenizer, prompt, longest)
        if prompt.text not in seen and ids:
            seen.add(prompt.text)
            group = groups[prompt.is_held_out, len(ids)]
            group.append(ids)
            if len(group) == (HELD_OUT_ROWS if prompt.is_held_out else ROWS_PER_SHARD):
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


def _ids_of(tokenizer: Any, prompt: Prompt, longest: int) -> list[int]:
    """The token ids of a question, cut where it is long. Empty where it cannot be asked."""
    ids: list[int] = tokenizer.encode(prompt.text, add_special_tokens=False)
    if len(ids) > WINDOW // 2:
        room = longest if longest > WINDOW // 2 else 0
        ids = ids[: min(len(ids), room) // LENGTH_STEP * LENGTH_STEP]
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
