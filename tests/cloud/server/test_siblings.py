"""A server among siblings: what it tells a client about them, and limits held together."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from cloud.errors import CapacityError
from cloud.server.forwarded_peers import ForwardedPeers, forwarded_peer
from cloud.sessions.lifecycle import SessionKey
from cloud.sessions.siblings import Elsewhere
from cloud.sessions.tenants import Tenant, Tenants
from tests.cloud.parts import open_request
from tests.cloud.server.test_service import FakeCall, Service, opened, run, settle

ONE = Tenants.parse(b"token name=one sessions=2", "file")
TOKEN = ("authorization", "Bearer token")


class FakeSiblings:
    """Remembers what it was asked; refuses places when told to."""

    def __init__(self, room: Elsewhere | None = None) -> None:
        self.room = room
        self.asked: list[tuple[str, int]] = []
        self.taken: list[tuple[SessionKey, str]] = []
        self.is_full = False
        self.answers = asyncio.Event()

    async def wait_s(self, tenant: Tenant, num_rows: int, *, at_s: float) -> float:
        return 0.0

    async def check_place(self, tenant: Tenant, key: SessionKey, num_here: int) -> None:
        self.asked.append((tenant.name, num_here))
        await self.answers.wait()
        if self.is_full:
            raise CapacityError("all its sessions are elsewhere")

    def took_over(self, key: SessionKey, replica: str) -> None:
        self.taken.append((key, replica))

    def with_room(self) -> Elsewhere | None:
        return self.room


def test_a_replica_names_itself_before_it_opens_a_session() -> None:
    async def scenario() -> None:
        service = Service(siblings=FakeSiblings(), replica="r1")
        call = await service.open(open_request())
        assert call.headers == {"x-replica": "r1"}
        assert len(call.written) == 1

    run(scenario)


def test_a_server_alone_names_nobody() -> None:
    async def scenario() -> None:
        assert (await Service().open(open_request())).headers == {}

    run(scenario)


@pytest.mark.parametrize(("told", "taken"), [("r2", ["r2"]), ("r1", [])])
def test_a_session_that_another_replica_held_begins_anew_and_that_one_hears_it(
    told: str, taken: list[str]
) -> None:
    async def scenario() -> None:
        siblings = FakeSiblings()
        service = Service(siblings=siblings, replica="r1")
        call = service.call(("x-replica", told))
        call.say(open_request("mine"))
        await settle()
        assert opened(call).held_frames == 0  # which asks for the replay
        assert [replica for _, replica in siblings.taken] == taken

    run(scenario)


def test_a_refusal_names_the_replica_with_room_and_when_to_ask_it() -> None:
    async def scenario() -> None:
        service = Service(
            siblings=FakeSiblings(Elsewhere("r2", 0.1)), replica="r1", max_sessions=1, max_waiting=0
        )
        await service.open(open_request("a"))
        call = await service.open(open_request("b"))
        assert call.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call.trailers == {"retry-after-s": "0.1", "x-replica": "r2"}

    run(scenario)


def test_where_no_replica_helps_none_is_named() -> None:
    async def scenario() -> None:
        siblings = FakeSiblings(Elsewhere("r2", 0.1))
        siblings.is_full = True
        siblings.answers.set()
        service = Service(siblings=siblings, replica="r1", tenants=ONE)
        call = service.call(TOKEN)
        call.say(open_request("a"))
        await settle()
        assert call.trailers == {"retry-after-s": "1"}
        assert service.parts.lifecycle.num_of_tenant("one") == 0

    run(scenario)


def test_a_session_that_asks_the_siblings_counts_already() -> None:
    async def scenario() -> None:
        siblings = FakeSiblings()
        service = Service(siblings=siblings, replica="r1", tenants=ONE)
        calls = [service.call(TOKEN) for _ in range(3)]
        for index, call in enumerate(calls):
            call.say(open_request(f"s{index}"))
        await settle()
        assert siblings.asked == [("one", 1), ("one", 2)]
        assert calls[2].status is grpc.StatusCode.RESOURCE_EXHAUSTED
        places = service.parts.admission.tenant_places
        assert places.counts() == {"one": 2}
        siblings.answers.set()
        await settle()
        assert [len(call.written) for call in calls] == [1, 1, 0]
        assert places.counts() == {"one": 2}

    run(scenario)


@pytest.mark.parametrize(
    ("sent", "peer"),
    [
        (["10.0.0.1"], "ipv4:10.0.0.1:0"),
        (["1.1.1.1, 10.0.0.1"], "ipv4:10.0.0.1:0"),
        (["1.1.1.1", "10.0.0.1"], "ipv4:10.0.0.1:0"),
        (["2001:db8::1"], "ipv6:[2001:db8::1]:0"),
        (["nonsense"], None),
        ([], None),
    ],
)
def test_the_client_behind_a_proxy_is_the_last_address(sent: list[str], peer: str | None) -> None:
    assert forwarded_peer([("x-forwarded-for", one) for one in sent]) == peer


def test_a_handler_behind_a_proxy_sees_the_client_and_everything_else_unchanged() -> None:
    seen: list[tuple[str, Any]] = []

    async def behave(requests: Any, context: Any) -> None:
        seen.append((context.peer(), context.time_remaining()))

    async def scenario() -> None:
        handler = grpc.stream_stream_rpc_method_handler(behave)

        async def continuation(details: Any) -> Any:
            return handler

        details: Any = type("Details", (), {"invocation_metadata": (("x-forwarded-for", "::1"),)})
        wrapped = await ForwardedPeers().intercept_service(continuation, details)
        await wrapped.stream_stream(None, FakeCall())
        details.invocation_metadata = ()
        assert await ForwardedPeers().intercept_service(continuation, details) is handler

    asyncio.run(scenario())
    assert seen == [("ipv6:[::1]:0", None)]
