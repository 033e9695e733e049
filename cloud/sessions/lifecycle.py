"""The life of a session on the server: its states, what changes them, and who is in which.

    WAITING ──ADMIT──> RUNNING ──BREAK──> RESUMABLE
       │                 │  ^ └RESUME┐        │ │
       │                 │  └────────┴─RESUME─┘ │
     REFUSE              └──CLOSE──> CLOSING <──┘ CLOSE
       │                                │
       └────────────> FREED <───FREE────┘

A session holds KV blocks while it runs, while it is resumable and while it closes. A session that
closes no longer counts against its tenant's limit, although its blocks are not free yet. Only
CLOSING leads from a session with blocks to FREED, and nothing leads on from there: so its blocks
are freed once.

Nothing here does I/O, reads a clock or knows a thread. All of it lives on the event loop's thread,
except that any thread may read the counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final, NamedTuple

from cloud.errors import LifecycleError


class SessionState(Enum):
    """Where a session is in its life; see the module's docstring."""

    WAITING = auto()  # in the queue for a place, without blocks
    RUNNING = auto()  # on a stream
    RESUMABLE = auto()  # its stream broke; another stream may open it again
    CLOSING = auto()  # it ends; the model thread has not freed its blocks yet
    FREED = auto()  # it holds nothing


class SessionEvent(Enum):
    """What happens to a session."""

    ADMIT = auto()  # its blocks are reserved
    REFUSE = auto()  # it gets no place: its time is over, its client gone, or the server drains
    BREAK = auto()  # its stream broke, and its client had asked to keep it
    RESUME = auto()  # another stream opened it, perhaps before the server noticed the break
    CLOSE = auto()  # its client closed it, an error ended it, or it gave way to another session
    FREE = auto()  # its blocks are free


TRANSITIONS: Final[Mapping[tuple[SessionState, SessionEvent], SessionState]] = {
    (SessionState.WAITING, SessionEvent.ADMIT): SessionState.RUNNING,
    (SessionState.WAITING, SessionEvent.REFUSE): SessionState.FREED,
    (SessionState.RUNNING, SessionEvent.BREAK): SessionState.RESUMABLE,
    (SessionState.RUNNING, SessionEvent.RESUME): SessionState.RUNNING,
    (SessionState.RUNNING, SessionEvent.CLOSE): SessionState.CLOSING,
    (SessionState.RESUMABLE, SessionEvent.RESUME): SessionState.RUNNING,
    (SessionState.RESUMABLE, SessionEvent.CLOSE): SessionState.CLOSING,
    (SessionState.CLOSING, SessionEvent.FREE): SessionState.FREED,
}

_WITH_BLOCKS: Final = (SessionState.RUNNING, SessionState.RESUMABLE, SessionState.CLOSING)
_OF_A_TENANT: Final = (SessionState.WAITING, SessionState.RUNNING, SessionState.RESUMABLE)


class SessionKey(NamedTuple):
    """Whose session it is, and its id, which is its secret: nobody else can guess it."""

    tenant: str
    session_id: str


class SessionLife:
    """One session as `Lifecycle` sees it; two lives may have the same key. Compared by identity.

    model: whose session it is, as this server calls its models.
    """

    __slots__ = ("_state", "key", "model")

    def __init__(self, key: SessionKey, model: str = "") -> None:
        self.key = key
        self.model = model
        self._state = SessionState.WAITING

    @property
    def state(self) -> SessionState:
        """Where it is now; `Lifecycle.apply` changes it."""
        return self._state

    def __repr__(self) -> str:
        return f"SessionLife({self.key.tenant}, {self._state.name})"


class Lifecycle:
    """All sessions of a server by state, in the order in which they entered it."""

    def __init__(self) -> None:
        self._lives: dict[SessionState, dict[SessionLife, None]] = {
            state: {} for state in SessionState if state is not SessionState.FREED
        }

    @property
    def num_waiting(self) -> int:
        """Sessions in the queue for a place."""
        return self._count(SessionState.WAITING)

    @property
    def num_resumable(self) -> int:
        """Sessions whose stream broke and that another stream may open again."""
        return self._count(SessionState.RESUMABLE)

    @property
    def num_with_blocks(self) -> int:
        """Sessions that hold KV blocks, whether a stream uses them or not."""
        return self._count(*_WITH_BLOCKS)

    def in_state(self, state: SessionState) -> tuple[SessionLife, ...]:
        """The sessions in this state now, the first that entered it first."""
        return tuple(self._lives.get(state, {}))

    def counted(self) -> tuple[SessionLife, ...]:
        """The sessions that count against their tenants' limits."""
        return tuple(life for state in _OF_A_TENANT for life in self._lives[state])

    def num_of_tenant(self, tenant: str) -> int:
        """Sessions that count against this tenant's limit, those in the queue among them."""
        return sum(life.key.tenant == tenant for life in self.counted())

    def num_of_model(self, model: str, *states: SessionState) -> int:
        """Sessions of this model in these states; none named: those that hold KV blocks."""
        lives = (life for state in states or _WITH_BLOCKS for life in self.in_state(state))
        return sum(life.model == model for life in lives)

    def oldest(
        self, state: SessionState, tenant: str | None = None, model: str | None = None
    ) -> SessionLife | None:
        """The session that entered `state` first; of this tenant and model where one is named."""
        for life in self._lives.get(state, {}):
            if tenant in (None, life.key.tenant) and model in (None, life.model):
                return life
        return None

    def begin(self, key: SessionKey, model: str = "") -> SessionLife:
        """A new session, which waits."""
        life = SessionLife(key, model)
        self._lives[life.state][life] = None
        return life

    def apply(self, life: SessionLife, event: SessionEvent) -> None:
        """Let `event` happen to a session. Raises LifecycleError where its state forbids that."""
        following = TRANSITIONS.get((life.state, event))
        if following is None:
            raise LifecycleError(f"{event.name} came to a session that is {life.state.name}")
        del self._lives[life.state][life]
        life._state = following
        if following is not SessionState.FREED:
            self._lives[following][life] = None

    def _count(self, *states: SessionState) -> int:
        return sum(len(self._lives[state]) for state in states)
