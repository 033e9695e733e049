"""The models of one server, each found by the hash that an Open names.

There is no default: an Open whose hash no model has is refused. So a session never runs through
another model than the one that its edge holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cloud.errors import MismatchError, StartError
from cloud.sessions.model_sessions import ModelSessions
from protos.messages import Open

_SHOWN_CHARS: Final = 12  # of a hash, where there are several
_MOST_SHOWN: Final = 4


class ServedModels:
    """See the module's docstring. The first is what clients of one model see."""

    def __init__(self, models: Sequence[ModelSessions]) -> None:
        """Raises StartError for none, and for two of one hash or one name."""
        self._by_sha256 = {one.served.model_sha256: one for one in models}
        names = {one.name for one in models}
        if not models or len(self._by_sha256) < len(models) or len(names) < len(models):
            raise StartError("a server needs models of different hashes and names")
        self.first = models[0]

    def __iter__(self) -> Iterator[ModelSessions]:
        return iter(self._by_sha256.values())

    def __len__(self) -> int:
        return len(self._by_sha256)

    @property
    def max_message_bytes(self) -> int:
        """Most bytes of an honest message to this server, whichever model it is for."""
        return max(one.served.max_message_bytes for one in self)

    def of(self, request: Open) -> ModelSessions:
        """The model of the hash that `request` names. Raises MismatchError, which names them."""
        found = self._by_sha256.get(request.model_sha256)
        if found is None:
            raise MismatchError(
                f"the edge holds model {request.model_sha256}, this server serves {self._line()}"
            )
        return found

    def _line(self) -> str:
        """What is served, on one line that fits into a gRPC status."""
        models = tuple(self)
        if len(models) == 1:
            served = models[0].served
            return f"{served.model_sha256} ({served.model_id})"
        shown = [
            f"{one.served.model_sha256[:_SHOWN_CHARS]} ({one.served.model_id[:40]})"
            for one in models[:_MOST_SHOWN]
        ]
        more = len(models) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")
