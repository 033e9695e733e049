"""What happens to a generation's connection, told to whoever waits for the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple


class LinkNotice(NamedTuple):
    """One event.

    kind: "lost", a stream broke and a new one is looked for; "waiting", an attempt failed and the
    next one follows; "back", the session is open again and the answer goes on. address: of the
    server that it is about; empty where that is not known. reason: why, for people. wait_s: until
    the next attempt. left_s: until the generation gives up.
    """

    kind: Literal["lost", "waiting", "back"]
    address: str = ""
    reason: str = ""
    wait_s: float = 0.0
    left_s: float = 0.0


# Called in the generation's thread: it must be quick and raise nothing.
OnLink = Callable[[LinkNotice], None]


def unheard(notice: LinkNotice) -> None:
    """For a generation that nobody watches."""
