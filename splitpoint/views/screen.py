"""The consoles that commands print on. Text is printed as it is: brackets are no markup."""

from __future__ import annotations

from rich.console import Console


def open_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console for what comes from users, models and files: `[edge]` stays `[edge]`.

    For emphasis give it a `rich.text.Text` with a style.
    """
    return Console(stderr=stderr, width=width, markup=False, emoji=False)
