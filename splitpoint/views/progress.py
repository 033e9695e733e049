"""Progress on the terminal: a bar of bytes, or the name of the stage under way, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def byte_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that follows (bytes done, bytes in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def step_progress(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar that follows (what is being done, steps done, steps in all)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda stage, done, total: bar.update(
            task, description=f"{label}: {stage}", completed=done, total=total
        )


@contextmanager
def stage_progress(label: str) -> Iterator[Callable[[str], None]]:
    """A spinner that names the stage under way."""
    with Console(stderr=True).status(label) as status:
        yield lambda stage: status.update(f"{label}: {stage}")


@contextmanager
def share_progress(label: str) -> Iterator[Callable[[float], None]]:
    """A bar that follows the share (0 to 1) done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda share: bar.update(task, completed=share)


@contextmanager
def build_progress(label: str) -> Iterator[tuple[Callable[[str], None], Callable[[float], None]]]:
    """A bar with the stage under way, the share (0 to 1) done and the time left; the calls for
    stage and share."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(label, total=1.0)
        yield (
            lambda stage: bar.update(task, description=f"{label}: {stage}"),
            lambda share: bar.update(task, completed=share),
        )


@contextmanager
def share_and_stage_progress(label: str) -> Iterator[Callable[[float, str], None]]:
    """A bar that follows (share done, 0 to 1; what comes next)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda share, stage: bar.update(task, completed=share, description=stage)
