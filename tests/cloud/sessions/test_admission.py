"""Who gets a place, who waits for one, and what is given back where a client goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cloud.errors import (
    BadOpenError,
    CapacityError,
    CloudError,
    DrainingError,
    MismatchError,
)
from cloud.server.description import ServerDescription
from cloud.sessions.admission import Granted
from cloud.sessions.held_session import HeldSession
from cloud.sessions.tenants import ANONYMOUS, Tenant
from tests.cloud.parts import SESSION_BYTES, Parts, open_request

LIMITED = Tenant(name="limited", sessions=1)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(bounded())


async def admitted(parts: Parts, name: str, tenant: Tenant = ANONYMOUS) -> HeldSession:
    request = open_request(name)
    return parts.hold(await parts.admission.admit(request, tenant), request)


async def waiting(parts: Parts, name: str, tenant: Tenant = ANONYMOUS) -> asyncio.Task[Granted]:
    """An admission that stands in the queue by the time this returns."""
    count = parts.admission.num_waiting
    task = asyncio.create_task(parts.admission.admit(open_request(name), tenant))
    await asyncio.sleep(0)
    assert parts.admission.num_waiting == count + 1
    return task


async def freed(parts: Parts) -> None:
    parts.model_thread.free_all()
    await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"model_sha256": "ab" * 32}, MismatchError, "ab" * 32),
        ({"codec_tables_sha256": "ab" * 32}, MismatchError, "codec tables"),
        ({"hidden_size": 9}, BadOpenError, "hidden size 9"),
        ({"split": 2}, BadOpenError, "splits 0 to 1"),
        ({"max_tokens": 65}, BadOpenError, "may have 64"),
    ],
)
def test_what_no_session_can_be_is_refused_and_counts_nowhere(
    changes: dict[str, Any], kind: type[CloudError], reason: str
) -> None:
    async def scenario() -> None:
        parts = Parts()
        with pytest.raises(kind, match=reason):
            await parts.admission.admit(open_request(**changes))
        assert (parts.admission.num_sessions, parts.admission.num_waiting) == (0, 0)
        assert parts.pool.used_blocks == 0

    run(scenario)


def test_a_session_larger_than_the_whole_cache_does_not_wait_for_it() -> None:
    async def scenario() -> None:
        parts = Parts(num_bytes=SESSION_BYTES)
        with pytest.raises(BadOpenError, match="this server has"):
            await parts.admission.admit(open_request(max_tokens=64))
        assert parts.admission.num_waiting == 0

    run(scenario)


@pytest.mark.parametrize("limit", [{"max_sessions": 1}, {"num_bytes": SESSION_BYTES}])
def test_those_who_wait_get_the_next_places_in_their_order(limit: dict[str, Any]) -> None:
    async def scenario() -> None:
        parts = Parts(**limit)
        holder = await admitted(parts, "a")
        tasks = [await waiting(parts, name) for name in "bcd"]
        for task in tasks:
            holder.close()
            await asyncio.sleep(0.01)
            assert not task.done()  # its blocks are not free yet
            await freed(parts)
            granted = task.result()
            holder = parts.hold(granted, open_request(granted.session.session_id))
        assert [task.result().session.session_id for task in tasks] == ["b", "c", "d"]
        assert parts.admission.num_sessions == 1

    run(scenario)


def test_nobody_passes_a_session_that_is_too_large_for_now() -> None:
    async def scenario() -> None:
        parts = Parts(num_bytes=2 * SESSION_BYTES)
        small = await admitted(parts, "a")
        large = asyncio.create_task(parts.admission.admit(open_request("large", max_tokens=32)))
        await asyncio.sleep(0)
        next_one = await waiting(parts, "b")  # it would fit
        await asyncio.sleep(0.01)
        assert not next_one.done()
        small.close()
        await freed(parts)
        assert large.done()
        next_one.cancel()

    run(scenario)


def test_a_full_queue_says_when_to_come_back_later_the_longer_it_is() -> None:
    async def scenario() -> None:
        told = []
        for max_waiting in (0, 2):
            parts = Parts(max_sessions=1, max_waiting=max_waiting)
            await admitted(parts, "a")
            tasks = [await waiting(parts, name) for name in "bc"[:max_waiting]]
            with pytest.raises(CapacityError, match="all 1 sessions are taken") as caught:
                await parts.admission.admit(open_request("beyond"))
            told.append(caught.value.retry_after_s)
            for task in tasks:
                task.cancel()
        assert 0 < told[0] < told[1]

    run(scenario)


@pytest.mark.parametrize("timeout_s", [None, 0.02])
def test_a_wait_ends_by_the_servers_time_or_the_clients(timeout_s: float | None) -> None:
    async def scenario() -> None:
        parts = Parts(max_sessions=1, max_wait_s=0.02 if timeout_s is None else 30.0)
        await admitted(parts, "a")
        with pytest.raises(CapacityError):
            await parts.admission.admit(open_request("b"), timeout_s=timeout_s)
        assert parts.admission.num_waiting == 0

    run(scenario)


def test_a_place_that_comes_as_its_client_goes_passes_to_the_next() -> None:
    async def scenario() -> None:
        parts = Parts(max_sessions=1)
        holder = await admitted(parts, "a")
        gone, after = await waiting(parts, "b"), await waiting(parts, "c")
        holder.close()
        parts.model_thread.free_all()
        await asyncio.sleep(0)
        # The place is granted, but its task has not run yet.
        assert parts.admission.num_waiting == 1
        gone.cancel()
        await asyncio.sleep(0.01)
        assert after.done()
        assert after.result().session.session_id == "c"
        assert (parts.admission.num_sessions, parts.pool.num_leases) == (1, 1)

    run(scenario)


def test_a_resumable_session_gives_way_and_only_as_many_as_are_needed() -> None:
    async def scenario() -> None:
        parts = Parts(num_bytes=3 * SESSION_BYTES)
        for name in "abc":
            parts.resumable.keep(await admitted(parts, name), 60.0)
        task = await waiting(parts, "d")
        assert len(parts.model_thread.closing) == 1
        await freed(parts)
        assert task.done()
        assert parts.lifecycle.num_resumable == 2

    run(scenario)


def test_a_tenants_limit_counts_those_who_wait_and_yields_its_own_resumable_ones() -> None:
    async def scenario() -> None:
        parts = Parts(max_sessions=2)
        other = await admitted(parts, "other")
        own = await admitted(parts, "a", LIMITED)
        with pytest.raises(CapacityError, match="limited has all its 1 sessions"):
            await parts.admission.admit(open_request("b"), LIMITED)
        parts.resumable.keep(other, 60.0)
        with pytest.raises(CapacityError):  # another tenant's does not help
            await parts.admission.admit(open_request("b"), LIMITED)
        parts.resumable.keep(own, 60.0)
        task = await waiting(parts, "b", LIMITED)  # its place is not free yet
        with pytest.raises(CapacityError):
            await parts.admission.admit(open_request("c"), LIMITED)
        await freed(parts)
        assert task.done()

    run(scenario)


def test_draining_refuses_those_who_wait_and_those_who_come() -> None:
    async def scenario() -> None:
        parts = Parts(max_sessions=1)
        holder = await admitted(parts, "a")
        task = await waiting(parts, "b")
        parts.admission.drain()
        with pytest.raises(DrainingError):
            await task
        with pytest.raises(DrainingError):
            await parts.admission.admit(open_request("c"))
        assert parts.admission.draining
        assert holder.is_alive
        assert (parts.admission.num_sessions, parts.admission.num_waiting) == (1, 0)

    run(scenario)


def test_it_describes_what_is_in_use() -> None:
    async def scenario() -> None:
        parts = Parts()
        await admitted(parts, "a")
        description = ServerDescription(parts.models, parts.lifecycle, ()).now()
        assert (description.active_sessions, description.kv_bytes_in_use) == (1, SESSION_BYTES)
        assert (description.first_layer, description.num_layers) == (0, 2)

    run(scenario)
