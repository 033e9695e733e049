"""Two models on one server: places are shared, KV memory and hashes are not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from cloud.errors import CapacityError, MismatchError, StartError
from cloud.kv.pool import KvPool
from cloud.kv.prefix_cache import PrefixCache
from cloud.server.description import ServerDescription
from cloud.sessions.admission import Granted
from cloud.sessions.grammars import Grammars
from cloud.sessions.held_session import HeldSession
from cloud.sessions.lifecycle import SessionEvent
from cloud.sessions.model_sessions import ModelSessions
from cloud.sessions.served_model import ServedModel
from cloud.sessions.served_models import ServedModels
from protos.messages import Open
from tests.cloud.parts import (
    LAYERS,
    SESSION_BYTES,
    SHA,
    SHAPE,
    WIDTH,
    Parts,
    open_request,
    small_plan,
)

OTHER = "ef" * 32


def other_model(num_sessions: int = 4, name: str = "other", sha256: str = OTHER) -> ModelSessions:
    plan = small_plan()
    plan = replace(plan, model=replace(plan.model, id=name, sha256=sha256))
    prefixes = PrefixCache()
    pool = KvPool(SHAPE, limit_bytes=num_sessions * SESSION_BYTES, reclaim=prefixes.drop_oldest)
    served = ServedModel(plan, layers=range(LAYERS), hidden_size=WIDTH, max_tokens=64)
    return ModelSessions(served, pool, prefixes=prefixes, grammars=Grammars(None, vocab_size=32))


def of_other(session_id: str) -> Open:
    return open_request(session_id, model_sha256=OTHER)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(bounded())


async def asked(parts: Parts, request: Open) -> asyncio.Task[Granted]:
    """An `admit` that has come as far as it can."""
    task = asyncio.create_task(parts.admission.admit(request))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def admitted(parts: Parts, request: Open) -> HeldSession:
    return parts.hold(await parts.admission.admit(request), request)


def end(parts: Parts, granted: Granted) -> None:
    granted.session.close()
    parts.lifecycle.apply(granted.life, SessionEvent.CLOSE)
    parts.lifecycle.apply(granted.life, SessionEvent.FREE)
    parts.admission.serve_queue()


def test_a_session_gets_the_memory_of_the_model_that_its_open_names() -> None:
    async def scenario() -> None:
        other = other_model()
        parts = Parts(others=[other])
        first = await parts.admission.admit(open_request("a"))
        second = await parts.admission.admit(of_other("b"))
        assert (first.model, second.model) == (parts.sessions, other)
        assert first.session.lease.pool is parts.pool
        assert second.session.lease.pool is other.pool
        assert (first.life.model, second.life.model) == ("small", "other")

    run(scenario)


def test_a_hash_that_no_model_has_is_refused_with_those_that_are_served() -> None:
    async def scenario() -> None:
        parts = Parts(others=[other_model()])
        with pytest.raises(MismatchError) as caught:
            await parts.admission.admit(open_request(model_sha256="01" * 32))
        said = str(caught.value)
        assert "01" * 32 in said
        assert f"{SHA[:12]} (small)" in said
        assert f"{OTHER[:12]} (other)" in said
        assert "\n" not in said
        assert parts.lifecycle.num_with_blocks == 0

    run(scenario)


def test_who_waits_for_memory_holds_up_its_own_model_alone() -> None:
    async def scenario() -> None:
        parts = Parts(num_bytes=SESSION_BYTES, others=[other_model()])
        first = await parts.admission.admit(open_request("a"))
        waits = await asked(parts, open_request("b"))
        behind = await asked(parts, open_request("c"))
        assert parts.admission.num_waiting == 2
        free = await asked(parts, of_other("d"))
        assert free.done()
        assert not waits.done()
        end(parts, first)
        granted = await waits
        assert not behind.done()
        end(parts, granted)
        assert (await behind).life.key.session_id == "c"

    run(scenario)


def test_places_are_of_the_whole_server_and_come_in_order() -> None:
    async def scenario() -> None:
        parts = Parts(max_sessions=2, max_waiting=2, others=[other_model()])
        first = await parts.admission.admit(open_request("a"))
        await parts.admission.admit(of_other("b"))
        third = await asked(parts, of_other("c"))
        fourth = await asked(parts, open_request("d"))
        with pytest.raises(CapacityError, match="all 2 sessions are taken"):
            await parts.admission.admit(of_other("e"))
        end(parts, first)
        end(parts, await third)
        assert (await fourth).life.key.session_id == "d"

    run(scenario)


def test_a_resumable_session_gives_way_where_that_helps() -> None:
    async def scenario() -> None:
        parts = Parts(num_bytes=SESSION_BYTES, others=[other_model()])
        kept = await admitted(parts, of_other("a"))
        parts.resumable.keep(kept, 60.0)
        await parts.admission.admit(open_request("b"))
        await asked(parts, open_request("c"))  # memory of the first model is short
        assert parts.lifecycle.num_resumable == 1
        full = Parts(max_sessions=1, others=[other_model()])
        kept = await admitted(full, of_other("a"))
        full.resumable.keep(kept, 60.0)
        await asked(full, open_request("b"))  # a place is short
        assert full.lifecycle.num_resumable == 0

    run(scenario)


def test_a_session_is_never_resumed_under_another_model() -> None:
    async def scenario() -> None:
        parts = Parts(others=[other_model()])
        held = await admitted(parts, open_request("a"))
        assert held.can_continue_as(open_request("a"))
        assert not held.can_continue_as(of_other("a"))
        parts.resumable.keep(held, 60.0)
        assert parts.resumable.claim(held.key, of_other("a"), lambda _: None) is None
        assert parts.lifecycle.num_resumable == 0

    run(scenario)


def test_a_full_cache_is_named_and_the_load_is_that_of_the_fullest_model() -> None:
    async def scenario() -> None:
        parts = Parts(num_bytes=SESSION_BYTES, max_waiting=0, others=[other_model()])
        await parts.admission.admit(open_request("a"))
        with pytest.raises(CapacityError, match="0 of 2 blocks are free for small"):
            await parts.admission.admit(open_request("b"))
        assert parts.admission.load().free_blocks == 0

    run(scenario)


def test_a_description_counts_each_model_and_the_server() -> None:
    async def scenario() -> None:
        parts = Parts(others=[other_model()])
        await parts.admission.admit(open_request("a"))
        await parts.admission.admit(of_other("b"))
        await parts.admission.admit(of_other("c"))
        description = ServerDescription(parts.models, parts.lifecycle, ()).now()
        assert (description.active_sessions, description.model_sha256) == (3, SHA)
        assert description.kv_bytes_in_use == 3 * SESSION_BYTES
        assert parts.lifecycle.num_of_model("other") == 2

    run(scenario)


@pytest.mark.parametrize(("name", "sha256"), [("twice", SHA), ("small", OTHER)])
def test_models_of_one_hash_or_one_name_are_refused(name: str, sha256: str) -> None:
    with pytest.raises(StartError):
        ServedModels([Parts().sessions, other_model(name=name, sha256=sha256)])
