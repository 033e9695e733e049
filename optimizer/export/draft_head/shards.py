"""A shard of the training corpus on disk: a folder that exists whole or not at all.

    NAME/token_ids.npy    int64 [N]
    NAME/rows.f16         float16 [N, D], row after row: what the device's front gives of the tokens
    NAME/states.f16       float16 [N, D]: the model's final states on them

Rows and states are written a passage at a time and read a batch at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from codec.arrays import F32, I64
from optimizer.export.draft_head.stored_rows import VALUE, RowRange, StoredRows
from optimizer.export.draft_head.text import Passage
from optimizer.export.working_folder import publish, working_folder

# One passage's rows from an empty cache: token ids [T] -> float32 [T, D].
FrontRows = Callable[[I64], F32]

WINDOW: Final = 256
IDS_NAME: Final = "token_ids.npy"
ROWS_NAME: Final = "rows.f16"
STATES_NAME: Final = "states.f16"
# Within the fp16 range. Larger values of a residual stream are clipped; a head loses nothing by it.
_LARGEST: Final = 6.0e4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Consecutive passages. token_ids: int64 [N]; rows and states: float16 [N, D] of these tokens.

    The last token of a passage has no state, so it is left out.
    """

    token_ids: I64
    rows: StoredRows
    states: StoredRows


def write_shard(folder: Path, passages: Iterable[Passage], front: FrontRows) -> None:
    """Write passages, one at a time, as the shard `folder`; what is there is replaced.

    An earlier version had a file NAME.npz in its place; that is removed.
    """
    with working_folder(folder) as working:
        made = working / "shard"
        made.mkdir()
        ids = [np.zeros(0, dtype=np.int64)]
        with (made / ROWS_NAME).open("wb") as rows, (made / STATES_NAME).open("wb") as states:
            for passage in passages:
                if len(passage.token_ids) < 2:
                    continue
                ids.append(passage.token_ids[:-1])
                found = np.clip(front(passage.token_ids[:-1]), -_LARGEST, _LARGEST)
                rows.write(found.astype(VALUE).tobytes())
                states.write(passage.states.astype(VALUE, copy=False).tobytes())
        np.save(made / IDS_NAME, np.concatenate(ids))
        publish(made, folder)
    folder.with_name(f"{folder.name}.npz").unlink(missing_ok=True)


def open_shard(folder: Path, width: int) -> Shard | None:
    """The shard `folder` with rows of `width` channels; None where there is none.

    A shard whose files do not fit each other, after a disk's fault, counts as none.
    """
    with contextlib.suppress(OSError, ValueError):
        token_ids = np.load(folder / IDS_NAME)
        num_bytes = len(token_ids) * width * VALUE.itemsize
        paths = folder / ROWS_NAME, folder / STATES_NAME
        if all(path.stat().st_size == num_bytes for path in paths):
            rows, states = (
                StoredRows([RowRange(path=path, begin=0, count=len(token_ids))], width)
                for path in paths
            )
            return Shard(token_ids=token_ids, rows=rows, states=states)
    return None


def split_shard(shard: Shard, every: int) -> Iterator[tuple[Shard, bool]]:
    """The shard in runs of WINDOW positions, with whether it is held out: every `every`-th is."""
    for index, begin in enumerate(range(0, len(shard.token_ids), WINDOW)):
        end = min(begin + WINDOW, len(shard.token_ids))
        piece = Shard(
            token_ids=shard.token_ids[begin:end],
            rows=shard.rows.between(begin, end),
            states=shard.states.between(begin, end),
        )
        yield piece, index % every == every - 1
