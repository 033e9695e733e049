"""What a stream tells a load balancer, and what the servers behind it tell the edge.

Behind one address there may be several servers. Each names itself, or another one that has room.
The next stream of the generation names it back, so a balancer that looks finds the session's
server. Any other balancer, and any other server, ignores it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from protos.affinity import replica_in, session_name
from protos.messages import Open
from protos.metadata import PREFIX_KEY, REPLICA_KEY, SESSION_KEY


@dataclass(slots=True)
class Route:
    """Of one generation. prefix_hash: names its prompt's first block (`protos.affinity`).

    replica: the server that was named last; empty: none yet. The stream's reader thread writes it.
    """

    prefix_hash: str = ""
    replica: str = ""

    def heard(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        """Remember the server that an answer's metadata names, if it names one."""
        self.replica = replica_in(metadata) or self.replica

    def metadata_of(self, request: Open) -> tuple[tuple[str, str], ...]:
        """What goes with a stream that opens `request`."""
        named = (
            (SESSION_KEY, session_name(request.continues or request.session_id)),
            (PREFIX_KEY, self.prefix_hash),
            (REPLICA_KEY, self.replica),
        )
        return tuple((key, value) for key, value in named if value)
