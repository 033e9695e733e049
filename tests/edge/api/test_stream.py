"""A generation in a thread, its pieces in the event loop: order, errors, and the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from edge.api.stream import RunningAnswer
from edge.errors import LostError
from edge.generation.completion import TextPiece

PIECES = [TextPiece(index, 0.0, str(index)) for index in range(3)]


class Run:
    """Brings three pieces, then ends, raises, or waits until it is cancelled."""

    def __init__(self, *, error: Exception | None = None, waits: bool = False) -> None:
        self.may_begin = threading.Event()
        self.may_begin.set()
        self._error = error
        self._waits = waits
        self.cancelled = threading.Event()

    def __iter__(self) -> Iterator[TextPiece]:
        assert self.may_begin.wait(10)
        yield from PIECES
        if self._waits:
            assert self.cancelled.wait(10)
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        self.cancelled.set()


async def collect(run: Any, ended: list[str]) -> list[TextPiece]:
    answer = RunningAnswer(run, lambda: ended.append("end"))
    found = []
    async for piece in answer.pieces():
        found.append(piece)
        if len(found) == len(PIECES):
            answer.cancel()
    return found


@pytest.mark.parametrize("waits", [False, True])
def test_the_pieces_come_in_order_and_the_slot_is_free_before_the_end_is_seen(waits: bool) -> None:
    ended: list[str] = []
    assert asyncio.run(collect(Run(waits=waits), ended)) == PIECES
    assert ended == ["end"]


@pytest.mark.parametrize("error", [LostError("cut"), ZeroDivisionError("ours")])
def test_what_the_generation_raises_is_raised_in_the_loop(error: Exception) -> None:
    ended: list[str] = []
    with pytest.raises(type(error), match=str(error)):
        asyncio.run(collect(Run(error=error), ended))
    assert ended == ["end"]


def test_a_piece_for_a_closed_loop_cancels_the_generation() -> None:
    run: Any = Run(waits=True)
    run.may_begin.clear()

    async def leave() -> None:
        RunningAnswer(run, lambda: None)

    asyncio.run(leave())
    assert not run.cancelled.is_set()
    run.may_begin.set()
    assert run.cancelled.wait(10)
