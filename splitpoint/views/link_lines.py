"""What a lost server means for the answer under way, in lines on stderr while it waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import typer

from splitpoint.views.terminal_text import shown_text

if TYPE_CHECKING:
    from edge.generation.link_notice import LinkNotice

# Attempts follow each other within a tenth of a second at first; nobody reads so many lines.
EVERY_S: Final = 5.0


class LinkLines:
    """Prints notices of a generation's connection.

    write: takes one line. clock: seconds, monotonic. stop: how to end the wait, for people.
    """

    def __init__(
        self,
        write: Callable[[str], None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        stop: str = "Ctrl-C ends it",
    ) -> None:
        self._write = write or _on_stderr
        self._clock = clock
        self._stop = stop
        self._lost_s: float | None = None
        self._quiet_until_s = 0.0

    def __call__(self, notice: LinkNotice) -> None:
        """Print what is new."""
        now_s = self._clock()
        reason = shown_text(notice.reason)
        if notice.kind == "back":
            if self._lost_s is not None:
                taken_s = now_s - self._lost_s
                self._write(f"({notice.address} answers after {taken_s:.0f} s: the answer goes on)")
            self._lost_s = None
        elif notice.kind == "lost":
            if self._lost_s is None:
                self._lost_s = now_s
                self._write(
                    f"\n({notice.address} is lost: {reason}; looking for a server for "
                    f"{notice.left_s:.0f} s, {self._stop})"
                )
                self._quiet_until_s = now_s + EVERY_S
        elif now_s >= self._quiet_until_s:
            self._write(f"({reason}; {notice.left_s:.0f} s left to try, {self._stop})")
            self._quiet_until_s = now_s + EVERY_S


def _on_stderr(line: str) -> None:
    if not sys.stdout.isatty():
        line = line.lstrip("\n")  # only there it would stand in the middle of the answer's line
    typer.echo(line, err=True)
