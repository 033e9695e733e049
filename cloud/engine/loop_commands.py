"""What the model thread is told, and the sessions in its care."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, TypeAlias

from cloud.engine.frame_work import FrameSession
from cloud.engine.step_drafting import DraftState
from cloud.errors import CloudError
from protos.messages import Drafts, Frame, Result

Deliver: TypeAlias = Callable[[Result | Drafts | CloudError], None]
# Called once the loop holds a frame no longer, on whatever thread lets go of it. Must not raise.
Release: TypeAlias = Callable[[], None]


def uncounted() -> None:
    """The `Release` of a frame that nobody counts."""


class ActiveSession:
    """A session in the loop's care: its frames in order, and where its answers go.

    The model thread owns it. Other threads may call `answer_to` and read `is_dropped`.
    draft_state: what the server's draft head keeps of the session; None: it does not draft for it.
    num_draft_ids: how many tokens the server guesses beyond an answer at most.
    """

    __slots__ = ("_deliver", "_dropped", "_frames", "draft_state", "num_draft_ids", "session")

    def __init__(
        self,
        session: FrameSession,
        deliver: Deliver,
        *,
        draft_state: DraftState | None = None,
        num_draft_ids: int = 0,
    ) -> None:
        self.session = session
        self.num_draft_ids = num_draft_ids
        self.draft_state = draft_state
        self._deliver = deliver
        self._frames: deque[SubmitCommand] = deque()
        self._dropped = False

    @property
    def is_dropped(self) -> bool:
        """Whether the loop has let go of it: it was closed, or an error ended it."""
        return self._dropped

    def deliver(self, drafts: Drafts) -> None:
        """Send what a drafter guesses beyond the last answer."""
        self._deliver(drafts)

    def answer_to(self, deliver: Deliver) -> None:
        """From now on `deliver` gets the answers."""
        self._deliver = deliver


class SubmitCommand(NamedTuple):
    """A frame has come, at `received_s` on the loop's clock."""

    active: ActiveSession
    frame: Frame
    received_s: float
    release: Release


class CloseCommand(NamedTuple):
    """Free the session, or let go of it and leave its blocks; `freed` is done once it is."""

    active: ActiveSession
    freed: Future[None]
    keeps_blocks: bool = False


class MaskedCommand(NamedTuple):
    """The masks that the session's frame waited for are there."""

    active: ActiveSession


class RowsReadyCommand(NamedTuple):
    """The rows of the session's next frame are there."""

    active: ActiveSession


class StopCommand:
    """End the thread."""


Command: TypeAlias = SubmitCommand | CloseCommand | MaskedCommand | RowsReadyCommand | StopCommand
