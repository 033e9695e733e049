"""When a call over a gRPC channel gets through: on a connection, and after one that failed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from optimizer.simulate.channel import Channel


@dataclass
class Life:
    """What a channel asks of a server."""

    life: int = 0
    alive: bool = True
    since_s: float = 0.0


def test_a_connection_holds_until_its_server_is_lost() -> None:
    server, channel = Life(), Channel()
    assert channel.state(server, 1.0) == "new"
    channel.connected(server, 0.2)
    assert channel.state(server, 100.0) == "connected"
    server.life, server.alive = 1, False
    assert channel.state(server, 101.0) == "new"


# Attempts begin at 0, 0.1, 0.26, 0.516, 0.9256, 1.58096, 2.629536, 4.307..., then every 2 s.
@pytest.mark.parametrize(
    ("back_s", "heard_s"), [(0.05, 0.1), (0.3, 0.516), (2.0, 2.629536), (2.7, 4.307258), (5, 6.307)]
)
def test_after_a_failed_attempt_calls_fail_until_grpc_has_tried_again(
    back_s: float, heard_s: float
) -> None:
    server, channel = Life(life=1, alive=False), Channel()
    channel.connected(Life(life=0), 0.2)
    channel.failed(0.0)
    assert channel.state(server, back_s) == "failing"
    server.alive, server.since_s = True, back_s
    hello_s = 0.2
    assert channel.state(server, heard_s + hello_s - 1e-3) == "failing"
    assert channel.state(server, heard_s + hello_s + 1e-3) == "connected"
