"""Show long work on stderr: a bar on a terminal, a line every ten seconds anywhere else.

    with long_work(f"building {out}", kept="...") as work:
        work.stage("reading the model")
        work.share(0.1)

Ctrl-C ends the block with a line that says what was kept and how to go on.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from splitpoint.views.sizes import size_text
from splitpoint.views.work_state import WorkState, duration_text

EVERY_S: Final = 10.0
NOTHING_KEPT: Final = "nothing was kept; the same command begins anew"
_TICK_S: Final = 0.5


class Ticker:
    """Writes the line of a state every ten seconds, from `tick`, which somebody calls often.

    clock: seconds, monotonic. write: takes one line without its end.
    """

    def __init__(
        self, state: WorkState, clock: Callable[[], float], write: Callable[[str], None]
    ) -> None:
        self._state = state
        self._clock = clock
        self._write = write
        self._next_s = clock() + EVERY_S

    def tick(self) -> None:
        """Write a line if ten seconds have passed since the last one."""
        now_s = self._clock()
        if now_s >= self._next_s:
            self._next_s = now_s + EVERY_S
            self._write(self._state.line())


class _TimesColumn(ProgressColumn):
    """Time taken and time left, as the state has them."""

    def __init__(self, state: WorkState) -> None:
        super().__init__()
        self._state = state

    def render(self, task: Task) -> Text:
        left_s = self._state.left_s
        left = "" if left_s is None else f", about {duration_text(left_s)} left"
        return Text(f"{duration_text(self._state.elapsed_s)}{left}")


@contextmanager
def long_work(
    label: str,
    *,
    kept: str | Callable[[], str] = NOTHING_KEPT,
    clock: Callable[[], float] = time.monotonic,
    screen: Console | None = None,
) -> Iterator[WorkState]:
    """Show the work of the block. kept: what Ctrl-C leaves, and how to go on; asked for then."""
    state = WorkState(label, clock)
    screen = screen or Console(stderr=True, markup=False, emoji=False, highlight=False)
    try:
        with _WorkBar(state, screen) if screen.is_terminal else _lines(state, clock):
            yield state
    except KeyboardInterrupt:
        what = kept if isinstance(kept, str) else kept()
        _say(f"splitpoint: interrupted while {state.line()}: {what}")
        raise


def bytes_of(state: WorkState) -> Callable[[int, int], None]:
    """A function for (bytes done, bytes in all)."""

    def tell(done: int, total: int) -> None:
        state.steps(f"{size_text(done)} of {size_text(total)}", done, total)

    return tell


class _WorkBar(Progress):
    """A bar on a terminal that reads the state whenever rich's thread draws it."""

    def __init__(self, state: WorkState, screen: Console) -> None:
        self._state = state  # first: rich draws once while it sets itself up
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f} %", markup=False),
            _TimesColumn(state),
            console=screen,
            transient=True,
        )
        self.add_task(state.title, total=None)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar as it is now."""
        done = self._state.done
        for one in self.tasks:
            total = None if done is None else 1.0
            self.update(one.id, description=self._state.title, total=total, completed=done or 0.0)
        return super().get_renderables()


@contextmanager
def _lines(state: WorkState, clock: Callable[[], float]) -> Iterator[None]:
    """A line every ten seconds, from a thread: the work itself may be silent for minutes."""
    ticker, over = Ticker(state, clock, _say), threading.Event()

    def run() -> None:
        while not over.wait(_TICK_S):
            ticker.tick()

    thread = threading.Thread(target=run, name="long-work", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
