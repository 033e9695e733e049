"""Places for calls, calls that are stuck, and the time limit of one wait."""

from __future__ import annotations

import asyncio

import pytest

from cloud.errors import CapacityError, IdleError
from cloud.server.places import Places, address_of_peer
from cloud.server.stuck_calls import MAX_STUCK_PER_PEER, StuckCalls
from cloud.server.timers import within


class Call:
    def __init__(self, address: str) -> None:
        self._address = address

    def peer(self) -> str:
        return f"ipv4:{self._address}:5023"


def test_places_are_few_in_all_and_fewer_from_one_address() -> None:
    places = Places("calls", total=3, per_peer=2)
    with places.one(Call("a")), places.one(Call("a")):
        with pytest.raises(CapacityError, match="too many calls at once"), places.one(Call("a")):
            pass
        with (
            places.one(Call("b")),
            pytest.raises(CapacityError),
            places.one(Call("c")),
        ):
            pass
    assert places.num_taken == 0


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:5023", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%5D:5023", "[fe80::1]"),
        ("unix:/run/socket", "unix:/run/socket"),
    ],
)
def test_an_address_is_the_peer_without_its_port(peer: str, address: str) -> None:
    assert address_of_peer(peer) == address


def test_stuck_calls_count_against_their_own_address() -> None:
    stuck = StuckCalls()
    held = [stuck.one(Call("a")) for _ in range(MAX_STUCK_PER_PEER)]
    for one in held:
        stuck.check(Call("a"))
        one.__enter__()
    with pytest.raises(CapacityError, match="nobody reads"):
        stuck.check(Call("a"))
    stuck.check(Call("b"))
    for one in held:
        one.__exit__(None, None, None)
    stuck.check(Call("a"))


def test_a_wait_ends_by_its_result_its_limit_or_its_cancellation() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert await within(1.0, asyncio.sleep(0, "x"), IdleError("late")) == "x"
        with pytest.raises(IdleError, match="late"):
            await within(0.01, loop.create_future(), IdleError("late"))
        task = asyncio.create_task(within(20.0, loop.create_future(), IdleError("late")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # A limit that passed leaves the task as it was: it can wait again.
        await asyncio.sleep(0.01)

    asyncio.run(scenario())
