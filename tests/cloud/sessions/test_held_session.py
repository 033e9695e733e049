"""A session with blocks: it closes once, however often and from wherever it is told to."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.engine.loop import EngineLoop
from cloud.errors import LifecycleError
from cloud.sessions.held_session import HeldSession
from protos.messages import Frame
from tests.cloud.parts import Parts, open_request

STEPS = ("admit", "break", "claim", "close", "room", "free", "end")


def ignored(_: object) -> None:
    pass


def test_closing_twice_asks_the_model_thread_once() -> None:
    async def scenario() -> None:
        parts = Parts()
        held = parts.hold(await parts.admission.admit(open_request()), open_request())
        assert held.close() is held.close()
        assert len(parts.model_thread.closing) == 1
        assert not held.is_alive
        parts.model_thread.free_all()
        await asyncio.sleep(0)
        assert parts.lifecycle.num_with_blocks == 0
        assert held.close().done()

    asyncio.run(scenario())


def test_a_closing_session_cannot_be_resumed_or_kept() -> None:
    async def scenario() -> None:
        parts = Parts()
        held = parts.hold(await parts.admission.admit(open_request()), open_request())
        held.close()
        assert not held.can_continue_as(open_request())
        with pytest.raises(LifecycleError):
            held.keep_without_stream()
        with pytest.raises(LifecycleError):
            held.resume(ignored)

    asyncio.run(scenario())


def test_other_terms_are_another_session() -> None:
    async def scenario() -> None:
        parts = Parts()
        held = parts.hold(await parts.admission.admit(open_request()), open_request())
        assert held.can_continue_as(open_request(resume_s=9.0, prefix_hashes=(b"h" * 32,)))
        for changes in ({"split": 1}, {"max_tokens": 17}, {"codec_tables_sha256": "ef" * 32}):
            assert not held.can_continue_as(open_request(**changes))

    asyncio.run(scenario())


class Unused:
    def forward(self, batch: object) -> list[object]:
        raise RuntimeError("no frame gets that far")


def test_a_session_that_an_error_ended_while_nobody_listened_does_not_go_on() -> None:
    async def scenario() -> None:
        parts = Parts()
        loop = EngineLoop(Unused())  # type: ignore[arg-type]
        held = parts.hold(await parts.admission.admit(open_request()), open_request())
        parts.resumable.keep(held, 60.0)
        loop.start()
        # Rubbish for a frame: its session ends, and the error goes to nobody.
        loop.submit(held.active, Frame(sequence=0, first_position=0, token_ids=(1,), hidden=b"x"))
        loop.stop()
        assert held.active.is_dropped
        assert not held.is_alive
        assert parts.resumable.claim(held.key, open_request(), ignored) is None
        assert parts.lifecycle.num_resumable == 0

    asyncio.run(scenario())


@given(st.lists(st.sampled_from(STEPS), max_size=40))
def test_over_any_sequence_blocks_are_freed_once_and_counted_right(steps: list[str]) -> None:
    async def scenario() -> None:
        parts = Parts(max_sessions=3, max_waiting=0)
        admitted: list[HeldSession] = []
        freed_before = parts.pool.used_blocks
        for index, step in enumerate(steps):
            running = [held for held in admitted if held._life.state.name == "RUNNING"]
            if step == "admit" and parts.lifecycle.num_with_blocks < 3:
                request = open_request(f"s{index}")
                admitted.append(parts.hold(await parts.admission.admit(request), request))
            elif step == "break" and running:
                parts.resumable.keep(running[0], 60.0)
            elif step == "claim" and admitted:
                key = admitted[-1].key
                parts.resumable.claim(key, open_request(key.session_id), ignored)
            elif step == "close" and running:
                running[-1].close()
            elif step == "room":
                parts.resumable.close_oldest()
            elif step == "free":
                parts.model_thread.free_all()
                await asyncio.sleep(0)
            elif step == "end":
                parts.resumable.close_all()
            num_closing = len(parts.model_thread.closing)
            assert parts.pool.num_leases == parts.lifecycle.num_with_blocks
            assert parts.lifecycle.num_of_tenant("anonymous") == (
                parts.lifecycle.num_with_blocks - num_closing
            )
        for held in admitted:
            held.close()
        parts.resumable.close_all()
        parts.model_thread.free_all()
        await asyncio.sleep(0)
        assert parts.pool.used_blocks == freed_before == 0
        assert (parts.pool.num_leases, parts.lifecycle.num_with_blocks) == (0, 0)

    asyncio.run(scenario())
