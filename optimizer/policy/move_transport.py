"""What the cloud gets of the layers that move to it: their keys and values, or token ids.

The edge has keys and values of the moved layers [s', s) for T tokens. The cloud has those of the
layers from s on. So the device either sends what the cloud lacks, or the ids of all tokens, and the
cloud computes every layer again:

    by KV    2 rtt + I_kv / rate + elements * coder
    by ids     rtt + ids / rate  + T * (time of all layers a token)

I_kv = 2 * (s - s') * T * G * d * Q / 8 bytes, with Q bits an element of the level that is used.
That is B_kv of arXiv:2511.04002 (2 * sum over layers of T_w * Q_a) for the layers that move: the
others' part is there already. The second round trip of the first way is for the server's word that
it holds the older session. The decision is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from codec.kv.frame import LOSSLESS

MoveWay: TypeAlias = Literal["kv", "ids"]
MoveChoice: TypeAlias = Literal["auto", "kv", "ids"]
ID_BYTES: Final = 3.0  # of a token's id in its frame
# The level of keys and values that move, by whether the session's rows are lossless: what it loses
# is in docs/results/moving-split.md.
KV_LEVEL_OF: Final = {True: LOSSLESS, False: "kv8"}
# An element's encoding, and as much again its decoding: measured at `kv8` (kv_quality.py).
ENCODE_S: Final = 75e-9
DECODE_S: Final = 75e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveCosts:
    """What a move towards the cloud costs. Seconds; None: not measured.

    num_tokens: T. num_elements: of one token's keys and values in the moved layers. bits: Q.
    round_trip_s: of the link. seconds_per_byte: of the uplink. layers_s: the cloud's time for one
    token in all layers, in a long frame.
    """

    num_tokens: int
    num_elements: int
    bits: float
    round_trip_s: float
    seconds_per_byte: float | None
    layers_s: float | None


def kv_level(row_level: str) -> str:
    """The level of keys and values that move, by the level of a session's rows."""
    return KV_LEVEL_OF[row_level == LOSSLESS]


def kv_bytes(costs: MoveCosts) -> float:
    """I_kv, in bytes."""
    return costs.num_tokens * costs.num_elements * costs.bits / 8


def kv_s(costs: MoveCosts, seconds_per_byte: float) -> float:
    """Seconds until the cloud has all keys and values, when they are sent."""
    coder_s = (ENCODE_S + DECODE_S) * costs.num_tokens * costs.num_elements
    return 2 * costs.round_trip_s + kv_bytes(costs) * seconds_per_byte + coder_s


def ids_s(costs: MoveCosts, seconds_per_byte: float, layers_s: float) -> float:
    """Seconds until the cloud has all keys and values, when it computes them."""
    sent_s = ID_BYTES * costs.num_tokens * seconds_per_byte
    return costs.round_trip_s + sent_s + costs.num_tokens * layers_s


def cheaper_way(costs: MoveCosts) -> MoveWay:
    """The quicker of the two; ids where the link or the cloud has not been measured."""
    if costs.seconds_per_byte is None or costs.layers_s is None or costs.num_tokens < 1:
        return "ids"
    by_kv = kv_s(costs, costs.seconds_per_byte)
    return "kv" if by_kv < ids_s(costs, costs.seconds_per_byte, costs.layers_s) else "ids"
