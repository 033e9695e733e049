"""A remote generation over fakes, with the parts that a test does not name filled in."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from codec.ladder import Ladder
from edge.generation.chunk_sizer import ChunkSizer
from edge.generation.connector import Connector
from edge.generation.drafting import DraftSelector
from edge.generation.kv_shipment import KvShipment
from edge.generation.leaving import Leaving
from edge.generation.level_selector import LevelSelector
from edge.generation.link_notice import OnLink, unheard
from edge.generation.loop import RemoteGeneration
from edge.generation.prefill_planner import PrefillChoice
from edge.generation.prefix_memory import PrefixMemory
from optimizer.policy.retry import Clock, RetryPolicy
from protos.messages import Open
from tests.edge.fakes import WIDTH, FakeFront, FakeTransport

SHA = "0" * 64
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
CHUNK_TOKENS = 4


class ManualTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []

    def clock(self) -> Clock:
        return Clock(now=lambda: self.now_s, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


def open_request(max_tokens: int = 100, split: int = 1, session_id: str = "s") -> Open:
    return Open(
        session_id=session_id,
        model_sha256=SHA,
        split=split,
        hidden_size=WIDTH,
        codec_tables_sha256=SHA,
        max_tokens=max_tokens,
    )


def connector(
    transports: Sequence[FakeTransport],
    clock: Clock,
    retry_policy: RetryPolicy | None = None,
    *,
    max_tokens: int = 100,
    token_frames: bool = False,
    on_link: OnLink = unheard,
    split: int = 1,
    session_id: str = "s",
    shipment: KvShipment | None = None,
) -> Connector:
    return Connector(
        request=open_request(max_tokens, split, session_id),
        shipment=shipment,
        transports=transports,
        retry_policy=retry_policy or RetryPolicy(),
        clock=clock,
        rng=random.Random(1),
        token_frames=token_frames,
        on_link=on_link,
        cancel_within_s=math.inf,  # one sleep a wait: tests read how long each was
    )


def generation(
    transports: Sequence[FakeTransport],
    clock: Clock | None = None,
    retry_policy: RetryPolicy | None = None,
    *,
    front: FakeFront | None = None,
    selector: LevelSelector | None = None,
    drafting: DraftSelector | None = None,
    max_tokens: int = 100,
    prefill: PrefillChoice | None = None,
    on_link: OnLink = unheard,
    split: int = 1,
    prefixes: PrefixMemory | None = None,
    keeps_front: bool = False,
    session_id: str = "s",
    shipment: KvShipment | None = None,
    leaving: Leaving | None = None,
    num_prompt: int = 0,
) -> RemoteGeneration:
    """Lossless, in chunks of four tokens, without a deadline, on a clock that stands still."""
    clock = clock or ManualTime().clock()
    retry_policy = retry_policy or RetryPolicy()
    made = connector(
        transports,
        clock,
        retry_policy,
        max_tokens=max_tokens,
        token_frames=prefill is not None,
        on_link=on_link,
        split=split,
        session_id=session_id,
        shipment=shipment,
    )
    if leaving is not None:
        made._request = replace(leaving.announced(made._request), prompt_tokens=num_prompt)
    selector = selector or LevelSelector(ladder=Ladder.lossless(WIDTH), levels=("lossless",))
    return RemoteGeneration(
        front=front or FakeFront(),
        selector=selector,
        connector=made,
        chunks=ChunkSizer(CHUNK_TOKENS, selector=selector),
        retry_policy=retry_policy,
        clock=clock,
        drafting=drafting,
        prefill=prefill,
        prefixes=prefixes,
        keeps_front=keeps_front,
        room=None if leaving is None else leaving.room,
        shipment=shipment,
    )
