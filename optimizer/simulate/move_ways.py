"""What a simulated move brings to the server: keys and values, or nothing but token ids.

The edge's own policy decides (`optimizer.policy.move_transport`), from what the cost models say of
link and server: what a device has measured after some prompts. A cache of 8 bits cannot be sent, as
on the edge.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple, TypeAlias

from codec.kv.frame import KV_BITS, KvFrames
from optimizer.cost.prompt import all_ids_s
from optimizer.policy.move_transport import (
    DECODE_S,
    ENCODE_S,
    MoveCosts,
    cheaper_way,
    kv_level,
)
from optimizer.simulate.request_settings import RequestSettings, SettingAt
from optimizer.simulate.setup import Setup
from optimizer.simulate.workload import ClientSpec

# Of a plan's caches, those whose keys and values are what the layers computed, or nearly.
SENT_KV_BITS: Final = (16, 32)


class KvFrameCost(NamedTuple):
    """A frame with keys and values of `num_rows` tokens: its level, their bytes, and the seconds of
    encoding and of decoding them."""

    num_rows: int
    level: str
    kv_bytes: int
    encode_s: float
    decode_s: float


# Of the tokens cached, the split before and the split after: frames, none for a move by ids.
KvFramesOf: TypeAlias = Callable[[int, int, int], tuple[KvFrameCost, ...]]


class MoveWays:
    """One answer for all clients with the same group, device and link."""

    def __init__(self, setup: Setup, settings: RequestSettings) -> None:
        self._setup = setup
        self._settings = settings
        self._known: dict[tuple[int, str, str], KvFramesOf] = {}

    def of(self, spec: ClientSpec) -> KvFramesOf:
        """The frames that a client's moves send."""
        key = (spec.group, spec.device, spec.link)
        if key not in self._known:
            self._known[key] = self._way(spec)
        return self._known[key]

    def _way(self, spec: ClientSpec) -> KvFramesOf:
        plan, group = self._setup.plan, self._setup.scenario.clients[spec.group]
        geometry = plan.model.geometry
        level = kv_level(plan.level)
        by_ids = group.move_by == "ids" or plan.kv_bits not in SENT_KV_BITS
        at = self._settings.of(spec)

        def frames_of(num_tokens: int, before: int, after: int) -> tuple[KvFrameCost, ...]:
            if by_ids or num_tokens < 1:
                return ()
            frames = KvFrames(
                hidden_size=geometry.hidden_size,
                layers=range(after, before),
                num_heads=geometry.num_kv_heads,
                head_dim=geometry.head_dim,
            )
            costs = _costs(at, after, num_tokens, frames.num_elements, KV_BITS[level])
            if group.move_by == "auto" and cheaper_way(costs) == "ids":
                return ()
            return tuple(
                _frame(min(frames.max_tokens, num_tokens - start), level, frames.num_elements)
                for start in range(0, num_tokens, frames.max_tokens)
            )

        return cache(frames_of)


def _costs(at: SettingAt, split: int, num_tokens: int, elements: int, bits: float) -> MoveCosts:
    setting = at(split)
    return MoveCosts(
        num_tokens=num_tokens,
        num_elements=elements,
        bits=bits,
        round_trip_s=setting.link.rtt_s + setting.stack_s,
        seconds_per_byte=1 / setting.link.up_bytes_per_s,
        layers_s=all_ids_s(setting, num_tokens=num_tokens) / num_tokens,
    )


def _frame(num_rows: int, level: str, num_elements: int) -> KvFrameCost:
    elements = num_rows * num_elements
    kv_bytes = round(elements * KV_BITS[level] / 8)
    return KvFrameCost(num_rows, level, kv_bytes, elements * ENCODE_S, elements * DECODE_S)
