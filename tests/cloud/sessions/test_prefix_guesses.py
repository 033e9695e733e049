"""A tenant's devices may name few beginnings in vain, where a name is not a secret."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from cloud.kv.prefix_cache import Beginning
from cloud.sessions.prefix_guesses import BURST_MISSES, PrefixGuesses
from protos.messages import Open
from protos.prefix import begin_chain
from tests.cloud.parts import Parts, open_request

PIN = 7345


def test_misses_are_capped_and_come_back_with_time() -> None:
    now_s = [0.0]
    guesses = PrefixGuesses(lambda: now_s[0])
    assert guesses.allowed("one") == BURST_MISSES
    guesses.missed("one", BURST_MISSES + 10)
    assert guesses.allowed("one") == 0
    assert guesses.allowed("two") == BURST_MISSES
    now_s[0] = 15.0
    assert guesses.allowed("one") == 5


def name_of(pin: int, salt: bytes = b"") -> bytes:
    return hashlib.sha256(begin_chain(open_request(prefix_salt=salt)) + b"%04d" % pin).digest()


def probes(salt: bytes = b"") -> list[Open]:
    """Thirteen Opens that name every PIN there is, most of them in vain."""
    return [
        open_request(
            f"p{begin}",
            prefix_hashes=tuple(name_of(pin, salt) for pin in range(begin, begin + 1024)),
            prefix_salt=salt,
        )
        for begin in range(0, 10_000, 1024)
    ]


def test_a_pin_in_a_prompt_is_not_found_by_naming_every_pin() -> None:
    async def scenario() -> None:
        parts = Parts()
        asked: list[bytes] = []
        find = parts.prefixes.find

        def noted(tenant: str, chains: Sequence[bytes]) -> Beginning | None:
            asked.extend(chains)
            return find(tenant, chains)

        parts.prefixes.find = noted  # type: ignore[method-assign]
        for request in probes():
            held = parts.hold(await parts.admission.admit(request), request)
            held.close()
            parts.model_thread.free_all()
            await asyncio.sleep(0)
        assert len(asked) <= BURST_MISSES + 2
        assert name_of(PIN) not in asked

    asyncio.run(scenario())
